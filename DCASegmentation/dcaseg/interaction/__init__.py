"""Correction of a label map with clicks: points that belong to an organ, or do not.

``session.CorrectionSession`` is the entry point: it holds a CT and its labels, applies strokes, and undoes them
exactly. ``click_classifier`` (with ``evidence`` and ``random_walker``) and ``click_network`` are its two engines.
``session_requests.handle`` serves sessions to other processes, with requests and answers as plain data.
``result_correction`` corrects a result folder.
"""
