import models.cls_hrnet  # noqa: F401 (as upstream does)
