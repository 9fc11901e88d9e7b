"""The parent process: owns the listening sockets and keeps control and gateway alive."""
