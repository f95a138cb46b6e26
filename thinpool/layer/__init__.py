"""Layers as trees and as archives, whatever the driver: comparing, exporting, importing."""
