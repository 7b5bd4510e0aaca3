from models import cone
from models.command import main

main(cone)
