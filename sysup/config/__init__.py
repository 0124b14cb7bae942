"""Options: one declaration each; INI text in, frozen dataclasses out."""
