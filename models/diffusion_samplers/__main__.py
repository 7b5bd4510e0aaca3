from models import diffusion_samplers
from models.command import main

main(diffusion_samplers)
