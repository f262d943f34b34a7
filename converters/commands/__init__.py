"""The workbench's commands: convert, plan, prune, recover, export, evaluate.

Each module imports click and :mod:`edgescribe.sdk.console` at the top and torch and the like inside its
function, so that help needs no extra.
"""
