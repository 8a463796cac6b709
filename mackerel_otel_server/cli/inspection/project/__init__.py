"""What the files of a project say: which server, which application, which calls of ours."""
