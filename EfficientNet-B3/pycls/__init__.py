"""The part of pycls that trains EfficientNet. https://github.com/facebookresearch/pycls"""
