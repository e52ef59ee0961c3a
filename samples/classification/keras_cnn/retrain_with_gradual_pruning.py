"""Retrains the CNN, pruning more and more; writes gradual_pruned_cnn.keras and .onnx."""

import keras
from cnn import BATCH, arguments, compiled, export, images, report

import onnxdrp.compat.drpai_compaction_tool.tensorflow_model_optimization as tfmot
from onnxdrp.compat.drpai_compaction_tool.tensorflow import (
    Pruner,
    get_endstep,
    get_frequency,
    make_pruning_layer_list,
)

args = arguments(__doc__, retrain=True)
keras.utils.set_random_seed(0)
(x, y), test = images(args.data)

model = keras.models.load_model(args.pretrained_weight)
report(model, test)
pruner = Pruner(
    model,
    make_pruning_layer_list(model),
    final_pr=args.pruning_rate,
    end_step=get_endstep(len(x), BATCH, max_epoch=args.max_epochs),
    frequency=get_frequency(len(x), BATCH),
)
model_for_pruning = compiled(pruner.get_pruning_model(), args.lr)
callbacks = [tfmot.sparsity.keras.UpdatePruningStep()]
model_for_pruning.fit(
    x, y, batch_size=BATCH, epochs=args.max_epochs, callbacks=callbacks, verbose=2
)

report(model_for_pruning, test)
model_for_pruning.save("gradual_pruned_cnn.keras")
export(model, "gradual_pruned_cnn.onnx")
