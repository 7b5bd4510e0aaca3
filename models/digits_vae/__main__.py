import sys

from models import digits_vae
from models.command import main
from models.digits_vae import demo

if "--demo" in sys.argv:
    demo.command()
else:
    main(digits_vae)
