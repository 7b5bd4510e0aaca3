from models import eight_schools
from models.command import main

main(eight_schools)
