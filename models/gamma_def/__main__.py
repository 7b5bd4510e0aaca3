from models import gamma_def
from models.command import main

main(gamma_def)
