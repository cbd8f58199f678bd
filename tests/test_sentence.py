"""Sentences: options are read from things, flags are unique, JSON comes back."""

import json
import re

import jax.numpy as jnp
import pytest

from experiments import configs
from experiments.engine import catalogue
from experiments.engine.experiment import (
    TABLES,
    Experiment,
    choose,
    from_dict,
    to_dict,
    with_method,
)
from experiments.language import command, grammar
from experiments.language.sentence import (
    ROLES,
    Use,
    label,
    options_of,
    plain,
    summary,
    use,
)
from experiments.methods import METHODS
from experiments.methods.mean_flow import AlphaFlow, MeanFlow
from experiments.methods.velocity import FlowMatching
from flowjax import couplings, interpolants, times
from flowjax.objectives import penalties

THINGS = {
    f"{role}.{name}": thing
    for role, table in TABLES.items()
    for name, thing in table.items()
}


def say(name, *arguments):
    """The experiment that a command line makes of a named one."""
    experiment = configs.get(name)
    root = command.parse(
        experiment.sentence,
        TABLES,
        arguments,
        program="p",
        description="d",
        choose=lambda *given: choose(*given, teacher="runs/t"),
    )
    return Experiment(**root.options)


@pytest.mark.parametrize("name", sorted(THINGS))
def test_everything_in_a_table_explains_itself_and_its_options(name):
    thing = THINGS[name]
    assert summary(thing).endswith((".", ":")), summary(thing)
    for option in options_of(thing).values():
        assert option.help, option.name


def test_things_are_known_by_their_own_names():
    for role, table in TABLES.items():
        assert role in ROLES
        for name, thing in table.items():
            assert label(thing) == name
    assert label(AlphaFlow) == "alpha_flow"


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (float | jnp.ndarray, float),
        (float | None, float | None),
        (tuple[float, float] | tuple[jnp.ndarray, jnp.ndarray], tuple[float, float]),
        (tuple[int, ...], tuple[int, ...]),
        (jnp.ndarray, None),
        (tuple[float, jnp.ndarray], None),
    ],
)
def test_a_type_is_an_option_as_far_as_it_is_text(annotation, expected):
    assert plain(annotation) == expected


def test_a_use_checks_its_options_at_once():
    with pytest.raises(ValueError, match="logit_normal does not read maen; it reads"):
        use(times.logit_normal, maen=0.0)
    with pytest.raises(ValueError, match=r"logit_normal's mean: .*got 'near'"):
        use(times.logit_normal, mean="near")
    with pytest.raises(ValueError, match="clipped's penalty: Expected a `use`"):
        use(penalties.clipped, penalty=3)
    with pytest.raises(ValueError, match="clipped needs bound"):
        use(penalties.clipped).build()


def test_a_use_is_bound_where_it_lacks_arguments_and_called_where_not():
    assert use(interpolants.polynomial, power=2.0).build().alpha(3.0) == 9.0
    draw = use(times.uniform, low=0.5).build()
    assert draw.func is times.uniform
    assert draw.keywords == {"low": 0.5, "high": 1.0}
    wrapped = use(penalties.clipped, bound=1.0, penalty=use(penalties.learned))
    assert callable(wrapped.build(log_variance=lambda t, s: t))
    assert use(couplings.independent).build() is couplings.independent


@pytest.mark.parametrize("name", configs.names())
def test_flags_are_unique_and_json_comes_back(name):
    experiment = configs.get(name)
    flags = [n.flag for n in grammar.nodes(experiment.sentence)]
    flags += [leaf.flag for leaf in grammar.leaves(experiment.sentence)]
    assert len(flags) == len(set(flags))
    stored = json.loads(json.dumps(to_dict(experiment)))
    assert to_dict(from_dict(stored)) == stored
    assert grammar.differences(from_dict(stored).sentence, experiment.sentence) == {}
    assert configs.summary(name).endswith(".")


def test_every_method_has_an_experiment_on_digits_and_on_a_density():
    for name, thing in METHODS.items():
        for data in configs.BASES:
            assert configs.get(f"{data}_{name}").method.thing is thing


def test_a_sentence_chooses_and_sets():
    said = say(
        "digits_mean_flow",
        *("--method", "alpha_flow", "--method.decay", "0", "0.8"),
        *("--path", "polynomial", "--path.power=2", "--network.patch-size", "2"),
        *("--penalty", "adaptive", "--penalty.power", "0.5"),
    )
    assert said.method.thing is AlphaFlow
    assert said.method["decay"] == (0.0, 0.8)
    assert said.method["penalty"] == use(penalties.adaptive, power=0.5, offset=0.01)
    assert said.path.build().alpha(3.0) == 9.0
    assert said.network["patch_size"] == 2
    # What was not said is as it was.
    assert said.network["width"] == configs.get("digits_mean_flow").network["width"]


def test_what_a_command_says_beside_the_experiment_stays():
    """Another method at the joint does not lose the folder and the form of the run."""
    from experiments.train import Command

    root = command.parse(
        Use(Command, vars(configs.get("density_mean_flow"))),
        TABLES,
        ["--run", "r", "--smoke", "--method", "flow_matching"],
        program="p",
        description="d",
        choose=lambda *given: choose(*given, teacher="runs/t"),
    )
    assert (root["run"], root["smoke"]) == ("r", True)
    assert root["method"].thing is FlowMatching


def test_the_times_of_a_pair_have_the_flag_of_times():
    said = say("digits_mean_flow", "--times", "arctan_normal", "--times.std", "2")
    assert said.method["pairs"]["sampler"]["std"] == 2.0
    both = say("digits_mean_flow", "--pairs", "either_direction", "--times", "uniform")
    inner = both.method["pairs"]["pairs"]
    assert inner.thing is times.ordered_pairs
    assert inner["sampler"] == use(times.uniform, low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--method.segments", "7"),
            r"flow_matching does not read --method\.segments; it reads "
            r"--guidance, --times, --penalty",
        ),
        (("--method", "alphaflow"), r"must be one of .*did you mean alpha_flow"),
        (("--network.widht", "8"), r"did you mean --network\.width"),
        (("--pairs", "ordered_pairs"), "nothing here reads --pairs; the joints are"),
        (("--trainig.steps", "8"), r"did you mean --training\.steps"),
        (("--path", "none"), "--path can't be none"),
        (("--path",), "--path needs a name"),
    ],
)
def test_what_is_not_read_is_refused_with_what_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        say("digits_flow_matching", *arguments)


def test_an_optional_joint_can_be_left_empty_again():
    flags = ("--guidance", "guided_velocity", "--guidance.omega", "2")
    said = say("digits_mean_flow", *flags)
    assert said.method["guidance"]["omega"] == 2.0
    assert say("digits_mean_flow", "--guidance", "none").method["guidance"] is None


def test_a_method_brings_its_recipe_and_keeps_what_was_said():
    density = configs.get("density_mean_flow")
    uniform = use(times.uniform)
    taken = with_method(density, AlphaFlow, teacher="t")
    assert taken.method["pairs"]["sampler"] == uniform
    assert taken.method["pairs"]["equal"] == "single"
    # The law of a method's own is not what the experiment spoke about.
    anchored = with_method(density, METHODS["anchored_consistency"], teacher="t")
    assert anchored.method["times"].thing is times.arctan_normal
    consistency = with_method(density, METHODS["continuous_consistency"], teacher="t")
    assert consistency.path == use(interpolants.trigonometric)
    assert consistency.optimizer["learning_rate"] == 2e-4
    taught = with_method(density, METHODS["pi_flow"], teacher="t")
    assert taught.method["teacher"]["folder"] == "t"
    started = with_method(density, METHODS["decoupled_mean_flow"], teacher="t")
    assert started.training["start_from"] == "t"


def test_help_lists_every_option_once(capsys):
    with pytest.raises(SystemExit):
        say("digits_flow_matching", "--help")
    text = capsys.readouterr().out
    experiment = configs.get("digits_flow_matching")
    for leaf in grammar.leaves(experiment.sentence):
        flag = "--" + leaf.flag.replace("_", "-")
        assert len(re.findall(rf"(?m)^[│ ]*{re.escape(flag)}[ ,]", text)) == 1, flag
    for node in grammar.nodes(experiment.sentence):
        if node.flag not in ("training", "evaluation"):
            found = re.findall(rf"(?m)^[│ ]*--{re.escape(node.flag)} {{", text)
            assert len(found) == 1, node.flag


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {}}, "earlier form"),
        ({"path": {"use": "../linear"}}, "path must be one of linear"),
        ({"path": "linear"}, "path must say what it uses"),
        (
            {"network": {"use": "mlp", "width": "wide"}},
            "network: mlp's width: Expected",
        ),
        ({"method": {"use": "mean_flow", "segments": 2}}, "does not read segments"),
        ({"nonsense": 1}, "does not read nonsense"),
        ({"data": {"use": "tfds"}}, "data lacks name: mnist"),
    ],
)
def test_a_stored_experiment_is_not_trusted(change, message):
    stored = {**to_dict(configs.get("digits_mean_flow")), **change}
    with pytest.raises(ValueError, match=message):
        from_dict(stored)


def test_an_option_that_was_not_stored_has_its_default():
    stored = to_dict(configs.get("digits_mean_flow"))
    del stored["network"]["context_tokens"]
    assert from_dict(stored).network["context_tokens"] == 0


def test_differences_name_flags():
    old = configs.get("digits_mean_flow")
    new = old.vary(network={"width": 8}, method=use(FlowMatching))
    changed = grammar.differences(old.sentence, new.sentence)
    assert changed["network.width"] == (192, 8)
    assert changed["method"] == ("mean_flow", "flow_matching")
    assert changed["pairs"] == ("ordered_pairs", "-")
    assert "data" not in changed


def test_the_page_of_methods_is_that_of_the_tables():
    assert catalogue.PAGE.read_text() == catalogue.page(), (
        "run python -m experiments.catalogue"
    )


def test_the_list_names_everything():
    text = configs.listing()
    for name in ("digits_teacher", "alpha_flow", "arctan_normal", "adaptive", "unipc"):
        assert f"  {name} " in text
    assert "2505.13447" in text


def test_uses_are_equal_by_value():
    assert use(MeanFlow, warmup=0.1) == Use(MeanFlow, {"warmup": 0.1})
    assert use(MeanFlow) == use(MeanFlow, warmup=0.0)
    assert use(MeanFlow) != use(AlphaFlow)
    assert len({use(MeanFlow), use(MeanFlow)}) == 1
