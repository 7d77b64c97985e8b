import time


class Timer(object):
    def __init__(self):
        self.reset()

    def reset(self):
        self.total = self.calls = self.diff = 0

    def tic(self):
        self.start = time.time()

    def toc(self):
        self.diff = time.time() - self.start
        self.total, self.calls = self.total + self.diff, self.calls + 1
