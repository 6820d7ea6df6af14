"""What every folder stands on and knows nothing of the subject.

In: names, bytes, rows. Out: registries, whole files, journals, progress, checked JSON.
"""
