"""Classes that a text names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ssl_clip import ZeroShotClassifier
from ssl_clip.zero_shot import top_accuracies
from ssl_core.errors import InputError


def test_directions_are_means_over_templates_of_length_one(model, images):
    clip = model()
    classifier = ZeroShotClassifier(clip, ["red", "blue"], ["a {}", "photo of {}"])
    with torch.no_grad():
        mean = F.normalize((clip.encode_text("a blue") + clip.encode_text("photo of blue"))[0], dim=0)
    assert torch.allclose(classifier.weights[:, 1], mean, atol=1e-6)
    proba = classifier.predict_proba(images())
    assert proba.shape == (3, 2) and torch.allclose(proba.sum(1), torch.ones(3))
    logits = clip.encode_image(images()) @ classifier.weights / 0.07
    assert torch.allclose(proba, logits.softmax(1), atol=1e-6)


def test_under_the_sigmoid_loss_labels_are_judged_one_by_one(model, images):
    clip = model(loss="siglip")
    proba = ZeroShotClassifier(clip, ["red", "blue"]).predict_proba(images())
    assert (proba.sum(1) < 0.9).all(), "with its first bias neither label is likely"


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        (["red"], None, "two or more"),
        (["red", "red"], None, "different"),
        (["a", "b"], ["photo"], "has one {}"),
        (["a", "b"], [], "none"),
    ],
)
def test_labels_and_templates_that_make_no_classifier_are_refused(labels, templates, message, model):
    with pytest.raises(InputError, match=message):
        ZeroShotClassifier(model(), labels, templates)


def test_accuracies_by_hand():
    scores = torch.eye(6)[[0, 1, 1, 5]] + torch.arange(6) / 100
    found = top_accuracies(scores, torch.tensor([0, 1, 2, 4]))
    assert found == {"top1": 0.5, "top5": 1.0, "mean_per_class": 0.5}
