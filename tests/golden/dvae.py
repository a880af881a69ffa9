"""Numbers of the published encoder of DALL-E's dVAE on random weights: dvae.json.

    python tests/golden/dvae.py

makes the file with the package dall-e 0.1, which is not a dependency of this project.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
WIDTH, TOKENS = 16, 64


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Draw weights in the names of dall-e, always the same."""
    random = np.random.RandomState(0)
    drawn = {}
    for name, shape in sorted(shapes.items()):
        deviation = 0.1 if name.endswith(".b") else (2 / np.prod(shape[1:])) ** 0.5
        values = random.standard_normal(shape) * deviation
        if name == "blocks.output.conv.w":  # what all places have in common must not decide the ids
            values -= values.mean(1, keepdims=True)
        drawn[name] = torch.from_numpy(values.astype(np.float32))
    return drawn


def images() -> Tensor:
    """Draw two images, uint8 (2, 3, 32, 48): noise of squares, as large as what a token is about."""
    squares = np.random.RandomState(1).randint(0, 256, (2, 3, 4, 6)).astype(np.uint8)
    noise = np.random.RandomState(2).randint(0, 64, (2, 3, 32, 48))
    return torch.from_numpy((squares.repeat(8, 2).repeat(8, 3) // 2 + noise).astype(np.uint8))


def main() -> None:
    """Write the file."""
    from dall_e import map_pixels
    from dall_e.encoder import Encoder

    encoder = Encoder(n_hid=WIDTH, vocab_size=TOKENS, device=torch.device("cpu"), use_mixed_precision=False)
    encoder.load_state_dict(weights({name: tuple(value.shape) for name, value in encoder.state_dict().items()}))
    with torch.no_grad():
        logits = encoder(map_pixels(images() / 255))
    shapes = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    some = logits[0, :, 1, ::2].flatten().tolist()
    FILE.write_text(json.dumps({"shapes": shapes, "ids": logits.argmax(1).tolist(), "logits": some}) + "\n")


if __name__ == "__main__":
    main()
