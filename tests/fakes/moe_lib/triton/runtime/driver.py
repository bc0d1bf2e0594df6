class _Drivers:
    active: object = None

    def set_active(self, active: object) -> None:
        self.active = active


driver = _Drivers()
