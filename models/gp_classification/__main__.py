from models import gp_classification
from models.command import main

main(gp_classification)
