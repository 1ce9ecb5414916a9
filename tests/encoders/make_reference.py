"""Make data/musicnn.npz and data/small.*: what TensorFlow itself makes of MSD_musicnn, and a small checkpoint.

    pip install tensorflow-cpu==2.21.0 numpy      # in an environment of its own
    pip download --no-deps musicnn==0.1.0
    python tests/encoders/make_reference.py musicnn-0.1.0-py3-none-any.whl

The network is built by the wheel's own ``musicnn/models.py``. That calls ``tf.compat.v1.layers``, which today's
TensorFlow has no more: here are the six of them that it uses, made of ``tf.nn`` operations on variables of the
original names.
"""

import sys
import tempfile
import types
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "data"
EPSILON = 1e-3
"""Of ``tf.compat.v1.layers.batch_normalization``, by default."""


def patches() -> np.ndarray:
    """Two patches [2, 96, 187] of made-up spectrograms, in 64ths: falling with frequency, with beats and noise."""
    patch, band, frame = np.ogrid[:2, :96, :187]
    hashed = (patch * 7919 + band * 104_729 + frame * 1_299_709 + 12_345) * 2_654_435_761 % 2**32
    noise = (hashed ^ hashed >> 13) * 2_246_822_519 % 2**32 >> 26
    beat = 96 * (frame % (23 + 14 * patch) < 6)
    tone = 64 * ((band + frame // 40) % (11 + patch) == 0)
    return (np.maximum(0, noise + beat + tone + 60 - band) / 64).astype(np.float32)


def layers(tf) -> types.SimpleNamespace:
    """The layers of ``tf.compat.v1.layers`` that models.py uses, in evaluation mode."""
    counts: dict[str, int] = {}

    def variable(kind, name, shape):
        return tf.compat.v1.get_variable(f"{kind}/{name}", shape)

    def name(kind):
        number = counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{number}" if number else kind

    def conv2d(inputs, filters, kernel_size, padding, activation):
        layer = name("conv2d")
        kernel = variable(layer, "kernel", [*map(int, kernel_size), inputs.shape[3], filters])
        convolved = tf.nn.conv2d(inputs, kernel, strides=1, padding=padding.upper())
        return activation(tf.nn.bias_add(convolved, variable(layer, "bias", [filters])))

    def batch_normalization(inputs, training):
        layer, size = name("batch_normalization"), [inputs.shape[-1]]
        beta, gamma, mean, variance = (
            variable(layer, each, size) for each in ("beta", "gamma", "moving_mean", "moving_variance")
        )
        return tf.nn.batch_normalization(inputs, mean, variance, beta, gamma, EPSILON)

    def dense(inputs, units, activation):
        layer = name("dense")
        product = tf.matmul(inputs, variable(layer, "kernel", [inputs.shape[1], units]))
        product += variable(layer, "bias", [units])
        return activation(product) if activation else product

    def max_pooling2d(inputs, pool_size, strides):
        return tf.nn.max_pool2d(inputs, [1, *pool_size, 1], [1, *strides, 1], "VALID")

    return types.SimpleNamespace(
        conv2d=conv2d,
        batch_normalization=batch_normalization,
        dense=dense,
        max_pooling2d=max_pooling2d,
        flatten=lambda inputs: tf.reshape(inputs, [-1, int(np.prod(inputs.shape[1:]))]),
        dropout=lambda inputs, rate, training: inputs,
    )


class Old:
    """TensorFlow with another ``compat.v1.layers``."""

    def __init__(self, tf, ours):
        self._tf, self.compat = tf, types.SimpleNamespace(v1=types.SimpleNamespace(layers=ours))

    def __getattr__(self, name):
        return getattr(self._tf, name)


def musicnn(wheel: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What MSD_musicnn makes of the patches, and its variables as TensorFlow reads them."""
    import tensorflow as tf

    zipped = zipfile.ZipFile(wheel)
    source = zipped.read("musicnn/models.py").decode().replace("tf.compat.v1.logging", "# ")
    source = source.replace("import tensorflow as tf", "").replace("from musicnn import configuration as config", "")
    configuration = types.SimpleNamespace(N_MELS=96)
    with tempfile.TemporaryDirectory() as folder, tf.Graph().as_default():
        for suffix in (".index", ".data-00000-of-00001"):
            Path(folder, f"model{suffix}").write_bytes(zipped.read(f"musicnn/MSD_musicnn/{suffix}"))
        models = {"tf": Old(tf, layers(tf)), "config": configuration}
        exec(compile(source, "models.py", "exec"), models)
        x = tf.compat.v1.placeholder(tf.float32, [None, 187, 96])
        built = models["define_model"](x, False, "MSD_musicnn", 50)
        logits, mean_pool, max_pool, penultimate = built[0], built[6], built[7], built[8]
        pooled = tf.reshape(tf.stack([max_pool, mean_pool], 2), [-1, 1506])
        with tf.compat.v1.Session() as session:
            tf.compat.v1.train.Saver().restore(session, f"{folder}/model")
            values = session.run(
                {"pooled": pooled, "penultimate": penultimate, "tags": tf.sigmoid(logits), "logits": logits},
                {x: patches().transpose(0, 2, 1)},
            )
            reader = tf.compat.v1.train.NewCheckpointReader(f"{folder}/model")
            tensors = {each: reader.get_tensor(each) for each in reader.get_variable_to_shape_map()}
    return values, tensors


def small() -> None:
    """Write a small checkpoint of several types."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in SMALL.items():
            tf.compat.v1.get_variable(name, initializer=tf.constant(value))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(HERE / "small"), write_meta_graph=False, write_state=False)


SMALL = {
    "layer/kernel": np.arange(600, dtype=np.float32).reshape(20, 30) / 7,
    "layer/kernel/Adam": np.zeros((2, 3, 4), np.float32),
    "layer/bias": np.array([0.5, -1.0], np.float64),
    "step": np.array(2**40, np.int64),
    "mask": np.array([True, False, True]),
    "half": np.array([[1.5]], np.float16),
    "bytes": np.arange(5, dtype=np.uint8),
}

if __name__ == "__main__":
    outputs, tensors = musicnn(Path(sys.argv[1]))
    if len(sys.argv) > 2:  # all tensors as TensorFlow reads them
        np.savez(sys.argv[2], **tensors)
    np.savez_compressed(HERE / "musicnn.npz", **outputs)
    small()
