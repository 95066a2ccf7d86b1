"""Programs around ggjax: never imported by the library itself."""
