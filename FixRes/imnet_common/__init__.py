"""What at least two of the three phases share: networks, transforms, the learning rate, start weights."""
