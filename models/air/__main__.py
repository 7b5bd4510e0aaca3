from models import air
from models.command import main

main(air)
