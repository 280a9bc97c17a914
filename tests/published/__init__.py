"""Published worked examples, reproduced: `python -m tests.published` writes docs/published.md."""

from tests.published.circuits import CIRCUITS, MICROGRAD, SCORES
from tests.published.networks import GOKADIN, MAZUR, RETOLD, SOFTMAX

EXAMPLES = (MAZUR, RETOLD, GOKADIN, SOFTMAX, CIRCUITS, SCORES, MICROGRAD)
