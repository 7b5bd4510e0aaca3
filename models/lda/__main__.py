from models import lda
from models.command import main

main(lda)
