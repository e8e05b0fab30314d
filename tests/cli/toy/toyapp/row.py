from manyhead_core.app import App, Command

APP = App(
    name="toy",
    title="Toy",
    summary="logistic regression on three features",
    extra="rec",
    model="toyapp.model:Toy",
    config="toyapp.model:ToyConfig",
    task="toyapp.task:ToyTask",
    data="toyapp.data:ToyData",
    evaluate="toyapp.evaluate:evaluate",
    demo="toyapp.task:demo",
    monitor="val/loss",
    mode="min",
    commands=(
        Command("add", "add numbers", "toyapp.functions:add"),
        Command("stop", "is interrupted", "toyapp.functions:stop"),
        Command("crash", "fails by our mistake", "toyapp.functions:crash"),
        Command("broken", "needs a package that nobody has", "toyapp.broken:run"),
        Command("configs", "list the configs", "manyhead_core.cli.configs:configs"),
    ),
    medical=True,
)
