"""Parts of compare_devices.py and of the certificate's numbers: golden recipes, their steps on a device, layers against float64."""
