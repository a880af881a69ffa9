"""The networks: plain `nn.Module`s that do not depend on data, targets or training."""
