"""Heads of a Mask R-CNN that are small enough for tests."""

from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor


def small_heads(num_classes):
    """Arguments of `mask_rcnn`."""
    return {
        "box_head": TwoMLPHead(256 * 49, 8),
        "box_predictor": FastRCNNPredictor(8, num_classes),
        "mask_head": MaskRCNNHeads(256, (8,), 1),
        "mask_predictor": MaskRCNNPredictor(8, 8, num_classes),
    }
