"""One host carries out a request: looks, decides, runs the stages, writes the result. Knows nothing of Ray."""

from rayprep.node.forecast import forecast
from rayprep.node.lost_run import close_result
from rayprep.node.request import NodeRequest
from rayprep.node.run import ensure
from rayprep.node.survey import Survey, take_survey

__all__ = ["NodeRequest", "Survey", "close_result", "ensure", "forecast", "take_survey"]
