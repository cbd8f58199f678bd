"""The rules of guidance, and the methods that steer, against exactly guided fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from flowjax import analytic, fields, guidance, sampling, sources, times
from flowjax.guidance import rules
from tests.counting import Counter
from tests.tables import INTERPOLANTS

NULL = 2
MEANS = np.asarray([[1.0, -0.5, 0.3], [-1.2, 0.4, 2.0], [0.0, 0.0, 0.0]])
STD = 0.7
PATHS = {name: INTERPOLANTS[name]() for name in ("linear", "trigonometric")}


def gaussian_velocity(mean, std=STD, path=PATHS["linear"]):
    return analytic.velocity(analytic.gaussian(mean, std), path)


def class_velocity(x, t, cond):
    """The exact velocity of the class ``cond``, N(jnp.asarray(MEANS)[cond], STD^2)."""
    return jax.vmap(lambda x, t, mean: gaussian_velocity(mean)(x[None], t[None])[0])(
        x, t, jnp.asarray(MEANS)[cond]
    )


def batch(n=5, dim=3, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    x = jax.random.normal(keys[0], (n, dim))
    return x, jax.random.uniform(keys[1], (n,)), jnp.arange(n) % NULL


# Rules -----------------------------------------------------------------------------

RULES = {
    "extrapolation": rules.extrapolation,
    "optimal scale": rules.optimal_scale,
    "rescaled": rules.rescaled(share=0.7),
    "rescaled optimal": rules.rescaled(share=1.0, rule=rules.optimal_scale),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_scale_one_is_the_strong_prediction(rule):
    strong, weak = batch(seed=1)[0], batch(seed=2)[0]
    np.testing.assert_allclose(rule(strong, weak, 1.0), strong, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_treat_rows_alone_and_keep_the_dtype(rule):
    strong, weak = batch(seed=1)[0], batch(seed=2)[0]
    whole = rule(strong, weak, 2.5)
    np.testing.assert_allclose(
        rule(strong[3:4], weak[3:4], 2.5), whole[3:4], atol=1e-14
    )
    half = rule(strong.astype(jnp.bfloat16), weak.astype(jnp.bfloat16), 2.5)
    assert half.dtype == jnp.bfloat16


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_reach_classifier_free_guidance(rule):
    x, t, cond = batch()
    guided = guidance.classifier_free(class_velocity, scale=2.5, null=NULL, rule=rule)
    null = jnp.full_like(cond, NULL)
    expected = rule(class_velocity(x, t, cond), class_velocity(x, t, null), 2.5)
    np.testing.assert_allclose(guided(x, t, cond), expected, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_optimal_scale_is_least_squares_and_ignores_parallel_predictions():
    strong, weak = batch(seed=1)[0], batch(seed=2)[0]
    # scale 0 leaves ``a weak``: its distance from strong must be the least.
    nearest = rules.optimal_scale(strong, weak, 0.0)
    for row in range(len(strong)):
        a, *_ = np.linalg.lstsq(np.asarray(weak[row])[:, None], strong[row], rcond=None)
        np.testing.assert_allclose(nearest[row], a * weak[row], atol=1e-7)
    np.testing.assert_allclose(
        rules.optimal_scale(strong, -0.3 * strong, 7.0), strong, atol=1e-6
    )


@pytest.mark.usefixtures("x64")
def test_rescaling_restores_the_deviation():
    strong, weak = batch(seed=1)[0], batch(seed=2)[0]
    full = rules.rescaled(share=1.0)(strong, weak, 4.0)
    np.testing.assert_allclose(full.std(1), strong.std(1), atol=1e-12)
    none = rules.rescaled(share=0.0)(strong, weak, 4.0)
    np.testing.assert_allclose(none, rules.extrapolation(strong, weak, 4.0), atol=1e-13)
    constant = jnp.ones_like(strong)
    np.testing.assert_array_equal(rules.rescaled()(constant, constant, 4.0), constant)


@pytest.mark.usefixtures("x64")
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("share", [-0.1, 1.1, jnp.ones(2)])
def test_bad_share(share):
    with pytest.raises(ValueError, match="`share` must"):
        rules.rescaled(share=share)


# Zero start ------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_zero_start_holds_the_first_step_without_an_evaluation():
    x, _, cond = batch()
    v = Counter(class_velocity)
    held = guidance.zero_start(v, until=0.25)
    grid = times.uniform_grid(4)
    end = sampling.few_step(fields.euler_step(held), x, cond=cond, grid=grid)
    expected = sampling.few_step(
        fields.euler_step(class_velocity), x, cond=cond, grid=grid[2:]
    )
    np.testing.assert_allclose(end, expected, atol=1e-14)
    assert v.reset() == 2


@pytest.mark.usefixtures("x64")
def test_zero_start_decides_row_by_row():
    x, _, cond = batch(4)
    t = jnp.asarray([0.0, 0.1, 0.2, 0.9])
    value = guidance.zero_start(class_velocity, until=0.1)(x, t, cond)
    expected = jnp.where((t > 0.1)[:, None], class_velocity(x, t, cond), 0)
    np.testing.assert_allclose(value, expected, atol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "transform",
    [
        guidance.zero_start,
        lambda v: guidance.classifier(v, lambda x, t, c: x.sum(1)),
    ],
    ids=["zero start", "classifier"],
)
def test_methods_for_velocities_refuse_a_destination(transform):
    x, t, cond = batch()
    with pytest.raises(ValueError, match=r"velocities v\(x, t, cond\).*diagonal"):
        transform(class_velocity)(x, t, t, cond)


# Residual guidance -----------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_residual_guidance_leaves_data_that_are_one_point(path):
    x, t, _ = batch()
    reference = jnp.broadcast_to(jnp.asarray([0.5, -1.0, 2.0]), x.shape)
    # Data that are almost one point have almost the velocity and map of that point.
    point = analytic.gaussian(reference[0], 1e-5)
    weak_v = analytic.velocity(point, path)(x, t)
    weak_u = analytic.average_velocity(point, path)
    strong_v, strong_u = (
        gaussian_velocity(MEANS[0], path=path),
        fields.euler_step(gaussian_velocity(MEANS[0], path=path)),
    )
    options = {"scale": 2.5, "delta": 0.8, "interpolant": path}
    v = guidance.residual(strong_v, reference, **options)(x, t, None)
    expected = rules.extrapolation(strong_v(x, t), 0.8 * weak_v, 2.5)
    np.testing.assert_allclose(v, expected, atol=1e-4)
    s = t + 0.5 * (1 - t)
    u = guidance.residual(strong_u, reference, **options)
    expected = rules.extrapolation(strong_v(x, t), 0.8 * weak_u(x, t, s), 2.5)
    np.testing.assert_allclose(u(x, t, s, None), expected, atol=1e-4)
    np.testing.assert_allclose(u(x, t, t, None), v, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_residual_guidance_without_noise_is_the_field():
    x, _, cond = batch()
    one = jnp.ones(len(x))
    guided = guidance.residual(class_velocity, x, scale=3.0)
    np.testing.assert_array_equal(guided(x, one, cond), class_velocity(x, one, cond))


# Classifier guidance ---------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_exact_classifier_gives_the_class_velocity(path):
    weights, stds = [0.3, 0.7], np.asarray([[0.5] * 3, [0.9] * 3])
    both = analytic.mixture(weights, MEANS[:2], stds)
    one = analytic.gaussian(MEANS[1], 0.9)

    def log_probability(x, t, cond):
        return analytic.log_density(one, path)(x, t) - analytic.log_density(both, path)(
            x, t
        )

    x, t, _ = batch(8)
    t = t.at[0].set(1.0)
    v = analytic.velocity(both, path)
    guided = guidance.classifier(v, log_probability, interpolant=path, earliest=1e-4)
    np.testing.assert_allclose(
        guided(x, t), analytic.velocity(one, path)(x, t), atol=1e-9
    )
    start = guided(x, jnp.zeros(8))
    # The factor is infinite at t=0; held at 1e-4 the correction is nearly complete.
    exact = analytic.velocity(one, path)(x, jnp.zeros(8))
    assert jnp.isfinite(start).all()
    np.testing.assert_allclose(start, v(x, jnp.zeros(8)), atol=1e-9)
    near = guided(x, jnp.full(8, 2e-4))
    np.testing.assert_allclose(near, exact, atol=5e-3)


# Manifold projection ---------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_projection_of_equal_gaussians_has_its_closed_form():
    """One iteration of G moves x by the closed form of two Gaussian velocities."""
    x, _, cond = batch()
    cond = jnp.zeros_like(cond)
    for t0, s0 in ((0.2, 0.3), (0.0, 0.1)):
        t, s = jnp.full(len(x), t0), jnp.full(len(x), s0)
        h, spread = (s0 - t0) / 2, t0**2 * STD**2 + (1 - t0) ** 2
        slope = (t0 * STD**2 - (1 - t0)) / spread
        apart = jnp.asarray(MEANS[0] - MEANS[NULL])[None] * (1 - slope * t0)
        null = class_velocity(x, t, jnp.full_like(cond, NULL))
        own = class_velocity(x, t, cond)
        if t0 > 0.05:
            moved = h * apart - h * slope * h * null
        else:
            moved = h * apart - h * slope * h * own
        z = x + moved
        u = guidance.manifold_projection(
            class_velocity, scale=3.0, null=NULL, iterations=1
        )
        guided = guidance.classifier_free(class_velocity, scale=3.0, null=NULL)
        expected = z + (s0 - t0) * guided(z, t, cond)
        np.testing.assert_allclose(
            x + (s0 - t0) * u(x, t, s, cond), expected, atol=1e-12
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("memory", [0, 1])
def test_projection_costs_two_evaluations_per_iteration_and_ends(memory):
    x, _, cond = batch()
    v = Counter(class_velocity)
    u = guidance.manifold_projection(
        v, scale=3.0, null=NULL, iterations=3, memory=memory
    )
    end = sampling.few_step(u, x, cond=cond, grid=(0.0, 0.2, 0.5, 0.8, 1.0))
    # Steps from 0 and .2 are projected: 2 x (2 x 3 + 2); the other two only guided.
    assert v.reset() == 2 * 8 + 2 * 2
    assert jnp.isfinite(end).all()


@pytest.mark.usefixtures("x64")
def test_projection_of_agreeing_predictions_is_a_plain_step():
    def v(x, t, cond):
        return jnp.ones_like(x)

    x, t, cond = batch()
    u = guidance.manifold_projection(v, scale=5.0, null=NULL, iterations=3, memory=1)
    np.testing.assert_allclose(u(x, t, t + 0.1, cond), 1.0, atol=1e-12)
    np.testing.assert_allclose(u(x, t, t, cond), 1.0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_anderson_solves_a_linear_contraction_in_d_plus_one_evaluations():
    key_matrix, key_shift = jax.random.split(jax.random.key(3))
    matrix = 0.4 * jax.random.normal(key_matrix, (3, 3))
    shift = jax.random.normal(key_shift, (4, 3))

    def operator(z):
        return z @ matrix + shift

    exact = jnp.linalg.solve(jnp.eye(3) - matrix.T, shift.T).T
    z = jnp.zeros((4, 3))
    fast = guidance.anderson(operator, z, 5, memory=4, ridge=1e-14)
    np.testing.assert_allclose(fast, exact, atol=1e-8)
    slow = guidance.anderson(operator, z, 5, memory=0)
    plain = z
    for _ in range(5):
        plain = operator(plain)
    np.testing.assert_allclose(slow, plain, atol=1e-13)
    damped = guidance.anderson(operator, z, 1, memory=2, mixing=0.25)
    np.testing.assert_allclose(damped, 0.25 * shift, atol=1e-13)


# FlowChef and RectifID -------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("iterations", [1, 3])
def test_flow_chef_on_a_translation_has_its_closed_form(iterations):
    shift, goal, rate, steps = jnp.asarray([[1.0, -2.0, 0.5]]), 0.7, 0.3, 6
    x, *_ = batch()
    u = guidance.flow_chef(
        lambda x, t, cond: jnp.broadcast_to(shift, x.shape),
        lambda x1, cond: 0.5 * jnp.square(x1 - goal).sum(1),
        rate=rate,
        iterations=iterations,
    )
    end = sampling.few_step(u, x, grid=times.uniform_grid(steps))
    left = (1 - rate) ** (iterations * (steps - 1)) * (x + shift - goal)
    np.testing.assert_allclose(end - goal, left, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_flow_chef_sends_no_gradient_through_the_field():
    x, t, _ = batch()

    def end(scale):
        u = guidance.flow_chef(
            lambda x, t, cond: scale * x, lambda x1, cond: (x1**2).sum(1), rate=0.1
        )
        return u(x, t, t + 0.1, None).sum()

    assert jax.grad(end)(2.0) == 0


@pytest.mark.usefixtures("x64")
def test_flow_chef_lowers_the_loss_on_a_mixture():
    mixture = analytic.mixture([0.5, 0.5], MEANS[:2], 0.3)
    v = analytic.velocity(mixture, PATHS["linear"])
    x, *_ = batch(64)

    def loss(x1, cond):
        return 0.5 * jnp.square(x1 - MEANS[1][None]).sum(1)

    grid = times.uniform_grid(30)
    plain = sampling.few_step(fields.euler_step(v), x, grid=grid)
    steered = sampling.few_step(guidance.flow_chef(v, loss, rate=0.2), x, grid=grid)
    assert (loss(plain, None) > 3).mean() > 0.3  # about half start towards each mode
    assert (loss(steered, None) > 3).mean() == 0


@pytest.mark.usefixtures("x64")
def test_rectif_id_reaches_the_fixed_point():
    reference, *_ = batch()
    goal, radius, scale = jnp.asarray([[1.0, 0.0, -1.0]]), 1.5, 1.2

    def log_probability(x, cond):
        return -jnp.square(x - goal).sum(1) / (2 * radius**2)

    ratio = scale / radius**2
    expected = (reference + ratio * goal) / (1 + ratio)
    found = guidance.rectif_id(
        reference, log_probability, scale=scale, iterations=60, largest=None
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)
    bounded = guidance.rectif_id(
        reference, log_probability, scale=scale, iterations=1, largest=0.1
    )
    moved = jnp.linalg.norm(bounded - reference, axis=1)
    np.testing.assert_allclose(moved, 0.1 * scale, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: guidance.manifold_projection(
                class_velocity, scale=1.0, null=0, iterations=0
            ),
            "`iterations`",
        ),
        (
            lambda: guidance.flow_chef(
                class_velocity, lambda x, c: x.sum(1), rate=0.1, iterations=0
            ),
            "`iterations`",
        ),
        (
            lambda: guidance.rectif_id(
                jnp.asarray(MEANS), lambda x, c: x.sum(1), iterations=0
            ),
            "`iterations`",
        ),
        (lambda: guidance.zero_start(class_velocity, until=1.0), "`until`"),
        (
            lambda: guidance.classifier(
                class_velocity, lambda x, t, c: x.sum(1), earliest=0.0
            ),
            "`earliest`",
        ),
    ],
    ids=["projection", "chef", "rectif", "zero start", "classifier"],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Source pruning --------------------------------------------------------------------


def test_rejection_rate_of_one_direction_is_the_cap(key):
    dim, threshold, n = 32, 0.3, 20_000
    axis = np.eye(dim)[:1]
    rate = 0.5 * scipy.special.betainc((dim - 1) / 2, 0.5, 1 - threshold**2)
    first = sources.pruned_normal(key, n, (dim,), axis, threshold=threshold, attempts=2)
    raw = sources.pruned_normal(key, n, (dim,), np.zeros((0, dim)), threshold=threshold)
    changed = (first != raw).any(1).mean()
    assert abs(changed - rate) < 4 * np.sqrt(rate / n)


def test_pruned_noise_avoids_its_directions_and_keeps_its_radius(key):
    dim, n = 6, 20_000
    axes = np.eye(dim)[:2]
    x = sources.pruned_normal(key, n, (2, 3), axes, threshold=0.4).reshape(n, dim)
    cosine = x @ axes.T / jnp.linalg.norm(x, axis=1, keepdims=True)
    assert cosine.max() <= 0.4
    square = jnp.square(x).sum(1)  # chi^2 with mean dim and variance 2 dim
    assert abs(square.mean() - dim) < 4 * np.sqrt(2 * dim / n)
    again = sources.pruned_normal(key, 7, (2, 3), axes, threshold=0.4)
    assert again.shape == (7, 2, 3)


def test_sparse_directions_point_where_no_data_are():
    rng = np.random.default_rng(0)
    data = np.abs(rng.normal(size=(500, 4)))  # the positive orthant
    found = sources.sparse_directions(data)
    assert len(found) > 0
    units = data / np.linalg.norm(data, axis=1, keepdims=True)
    assert (found @ units.T).max() <= 0.01
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)
    around = rng.normal(size=(500, 4))
    assert sources.sparse_directions(around).shape == (0, 4)


@pytest.mark.usefixtures("untyped")
def test_bad_sources(key):
    with pytest.raises(ValueError, match="at least two examples"):
        sources.sparse_directions(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"shape \[r, 4\]"):
        sources.pruned_normal(key, 3, (4,), np.eye(3), threshold=0.5)
    with pytest.raises(ValueError, match="`threshold`"):
        sources.pruned_normal(key, 3, (3,), np.eye(3), threshold=0.0)
