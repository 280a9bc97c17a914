"""Published worked examples, reproduced: `python -m tests.published` writes docs/published.md."""

from tests.published.attention import BATCH_NORM, INTEGERS, LYNX, SKIP_GRAM
from tests.published.circuits import CIRCUITS, MICROGRAD, SCORES
from tests.published.course import CNN, LSTM, RNN
from tests.published.networks import GOKADIN, MAZUR, RETOLD, SOFTMAX
from tests.published.optimizers import ADAM, OPTIMIZERS
from tests.published.recurrent import BPTT, GRU
from tests.published.transformer import TRANSFORMER

EXAMPLES = (
    *(MAZUR, RETOLD, GOKADIN, SOFTMAX, CIRCUITS, SCORES, MICROGRAD),
    *(CNN, BATCH_NORM, RNN, LSTM, BPTT, GRU, INTEGERS, LYNX, TRANSFORMER, SKIP_GRAM, ADAM, OPTIMIZERS),
)
