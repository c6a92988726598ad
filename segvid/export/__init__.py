"""Trained models as files that run without segvid: TorchScript, torch.export (.pt2) and ONNX, each proven equal."""
