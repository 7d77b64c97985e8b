import pycls

EffNet = pycls.port("models/effnet.py").EffNet
