"""Pictures of plain text: pure functions from figures to rows of styled parts. No Textual here."""
