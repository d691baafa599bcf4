"""What a chip or runtime takes: profiles as data, and the question whether a model fits one."""
