"""Channels of a model: which must live or die together."""

from onnxdrp.channels.groups import ChannelGroup, Channels, Removed, channels_of

__all__ = ["ChannelGroup", "Channels", "Removed", "channels_of"]
