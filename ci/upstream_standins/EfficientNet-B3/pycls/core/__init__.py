import os

import pycls

__path__.append(os.path.join(pycls.PORT, "core"))
