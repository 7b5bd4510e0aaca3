from models import radon
from models.command import main

main(radon)
