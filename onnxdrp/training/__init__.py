"""What retraining with held masks needs in any framework: when to prune, how much, what.

    schedule   the pruning rate at each step of a training run
    held       the mask of a weight at a rate, within the mask that it has already
    asked      the settings of a Pruner, checked
    rows       a layer as the rules and tables of ONNX models take it

`onnxdrp.torch` and `onnxdrp.keras` put them into training loops.
"""
