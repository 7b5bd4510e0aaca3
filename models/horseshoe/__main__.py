from models import horseshoe
from models.command import main

main(horseshoe)
