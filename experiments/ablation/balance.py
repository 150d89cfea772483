"""How strongly the critic pulls at the decoder: gradient norms of trained runs, over the first 512 test images.

    python experiments/ablation/balance.py runs/ablation

Prints for each run with a critic the norm of the gradient of its weighted adversarial terms over the decoder's weights,
as a ratio to that of its other terms. The ratio is 0 for a critic that the decoder does not feel.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from pegasus_lightning.data.module import in_mixed_order, load_split
from pegasus_lightning.models.networks import frozen
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.trained import find_trained, open_runs
from pegasus_lightning.utils.tensors import to_float

IMAGES, BATCH = 512, 64


def gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([one.flatten() for one in found if one is not None])


def ratio(model: TwoPlayerModel, images: Tensor, labels: Tensor) -> float:
    """Return the ratio for one batch, in training mode; nothing is changed but BatchNorm's running statistics."""
    step = model.forward_batch(images, labels)
    with frozen(model.critic):
        terms = model.autoencoder_losses(step)
        weight = getattr(model.config.weights, "decoder_feature", None)  # of VAE/GAN's decoder
        others = [
            (weight if weight is not None and name == "feature" else term.weight) * term.value
            for name, term in terms.items()
            if not name.startswith("adversarial") and name != "kl"
        ]
        adversarial = [term.weighted for name, term in terms.items() if name.startswith("adversarial")]
        parameters = list(model.decoder.parameters())
        norms = [gradient(torch.stack(part).sum(), parameters).norm().item() for part in (adversarial, others)]
    return norms[0] / norms[1]


def main(places: list[str]) -> None:
    runs = open_runs(find_trained(places))
    print("| run | adversarial gradient at the decoder, over that of the other terms |\n| --- | --- |")
    for run in runs:
        if run.model.critic is None or run.config is None:
            continue
        test = in_mixed_order(load_split(run.config.data, "test"))
        model = run.model.train()
        found = []
        for start in range(0, IMAGES, BATCH):
            model.batches_done += 1  # other draws
            part = slice(start, start + BATCH)
            found.append(ratio(model, to_float(test.images[part]), test.labels[part]))
        print(f"| `{run.name}` | {sum(found) / len(found):.4f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
