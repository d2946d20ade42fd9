"""deploy(): a finished file to a folder that serves it elsewhere, and proves there that it does."""

from trtkit.deployment.deployment import Deployment, deploy, list_targets
from trtkit.deployment.target import Target, register_target

__all__ = ["Deployment", "Target", "deploy", "list_targets", "register_target"]
