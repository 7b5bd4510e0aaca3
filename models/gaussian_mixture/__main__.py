from models import gaussian_mixture
from models.command import main

main(gaussian_mixture)
