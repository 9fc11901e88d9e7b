"""What clients speak beside chat and completions: each API read into checked fields, and its answers written back.

A request in a dialect goes to the engine as it is where the engine has that endpoint, and as a chat (or a tokenize)
request where it has not: from there on everything that holds for those holds for it. `Spoken` is what reading gives,
`Speaker` what turns the answer back."""
