"""Looking for what went wrong: a run that goes pass by pass, back and forth, and says where.

    trace = onnxdrp.debug(model, recipe, reader)

- trace.py       the run: step, back, jump, run, rerun
- bisection.py   the pass, then the tensor, at which the error of the outputs passes a limit
- activation.py  one tensor on some samples: float against the model at a pass
- inputs.py      what the reader feeds, and whether the float model makes sense of it
"""

from onnxdrp.debugging.activation import Activation
from onnxdrp.debugging.bisection import Bisection
from onnxdrp.debugging.inputs import Inputs
from onnxdrp.debugging.trace import Trace

__all__ = ["Activation", "Bisection", "Inputs", "Trace"]
