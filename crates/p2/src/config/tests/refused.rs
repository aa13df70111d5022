//! What a user is told about configurations that cannot be read.

use std::fs;

use expect_test::{Expect, expect};

use super::{emoji, render};
use crate::config::{Base, resolve};

/// The message about `emoji-32` with one text replaced, read from a file.
fn check_file(from: &str, to: &str, expected: &Expect) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    let text = include_str!("../tests.toml");
    assert!(text.contains(from), "{from:?} is not in the preset");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let problem = resolve(&Base::File(path), &[]).unwrap_err();
    let message = render(problem).replace(&format!("{}/", folder.path().display()), "");
    expected.assert_eq(&message);
}

fn check_set(assignment: &str, expected: &Expect) {
    expected.assert_eq(&render(emoji(&[assignment]).unwrap_err()));
}

#[test]
fn a_misspelt_key_is_named_with_its_place() {
    check_file(
        "gamma = 1.0",
        "gama = 1.0",
        &expect![[r#"
            error: unknown key `gama` in `loss.weighting`
              --> my.toml:37:38
               |
            37 | weighting  = { kind = "p2", k = 1.0, gama = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |

            hint: did you mean `gamma`?"#]],
    );
    check_file(
        "beta1 ",
        "betta1 ",
        &expect![[r#"
            error: unknown key `betta1` in [optim]
              --> my.toml:46:1
               |
            46 | betta1         = 0.9                                   # usual
               |

            hint: did you mean `beta1`?"#]],
    );
    check_file(
        "[ema]",
        "[emma]",
        &expect![[r#"
            error: unknown key `emma` in the configuration
              --> my.toml:52:2
               |
            52 | [emma]
               |

            hint: did you mean `ema`?"#]],
    );
    check_file(
        "channels = 32",
        "chanels = 32",
        &expect![[r#"
        error: unknown value `chanels` for `model.heads`
          --> my.toml:17:27
           |
        17 | heads                 = { chanels = 32 }             # two to four heads
           |

        hint: did you mean `channels`?"#]],
    );
}

#[test]
fn an_unknown_name_is_refused_with_the_allowed_ones() {
    check_file(
        "\"linear\"",
        "\"quadratic\"",
        &expect![[r#"
            error: unknown value `quadratic` for `diffusion.schedule`
              --> my.toml:28:21
               |
            28 | schedule          = "quadratic"                          # as in the paper
               |

            hint: allowed here: `linear`, `cosine`, `sigmoid`, `karras`, `log-normal`, `shifted`, `zero-terminal-snr`"#]],
    );
    check_file(
        "\"linear\"",
        "\"cosin\"",
        &expect![[r#"
            error: unknown value `cosin` for `diffusion.schedule`
              --> my.toml:28:21
               |
            28 | schedule          = "cosin"                          # as in the paper
               |

            hint: did you mean `cosine`?"#]],
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_the_allowed() {
    check_set(
        "diffusion.schedule={karras={sigma_min=80.0,sigma_max=0.002,rho=7.0}}",
        &expect![[r#"
            error: `diffusion.schedule` is {"karras":{"sigma_min":80.0,"sigma_max":0.002,"rho":7.0}}; allowed: a schedule whose noise grows with t: sigma_max is 0.002, expected a number above sigma_min
             --> --set:1:20
              |
            1 | diffusion.schedule={karras={sigma_min=80.0,sigma_max=0.002,rho=7.0}}
              |

            hint: change it where it stands, or override it with --set diffusion.schedule=VALUE"#]],
    );
    let continuous = [
        "diffusion.time=continuous",
        "diffusion.variance=fixed-small",
    ];
    assert!(emoji(&continuous).is_ok());
    let importance = "loss.density={loss-second-moment={n_history=10,uniform=0.001}}";
    assert!(emoji(&[importance]).is_ok());
    for assignments in [
        &["loss.strata=0"][..],
        &[
            "diffusion.schedule={zero-terminal-snr={of=\"linear\"}}",
            "diffusion.prediction=v",
            "sample.sampler=heun",
        ],
        &["loss.strata=3", "loss.antithetic=true"],
        &["loss.density={speed={n_first=1000,ratio=5.0}}"],
        &["loss.density={loss-second-moment={n_history=0,uniform=0.001}}"],
        &["loss.density={loss-second-moment={n_history=10,uniform=0.0}}"],
        &["loss.objective=kl"],
        &[
            "loss.objective=kl",
            "loss.weighting={kind=\"simple\"}",
            continuous[0],
            continuous[1],
        ],
        &[continuous[0]],
        &[continuous[0], "diffusion.variance=learned"],
        &[continuous[0], continuous[1], importance],
        &[continuous[0], continuous[1], "diffusion.n_timesteps=20000"],
        &[continuous[0], continuous[1], "diffusion.prediction=x-prev"],
        &["diffusion.prediction=x-prev", "sample.sampler=heun-churn"],
        &["diffusion.prediction=x-prev", "sample.sampler=flow"],
    ] {
        assert!(emoji(assignments).is_err(), "{assignments:?}");
    }
    check_set(
        "loss.density={laplace={mean=0.0,scale=-1.0}}",
        &expect![[r#"
            error: `loss.density` is one with scale = -1; allowed: a finite number above 0
             --> --set:1:14
              |
            1 | loss.density={laplace={mean=0.0,scale=-1.0}}
              |

            hint: change it where it stands, or override it with --set loss.density=VALUE"#]],
    );
    let kl = [
        "loss.objective=rescaled-kl",
        "loss.weighting={kind=\"simple\"}",
    ];
    assert!(emoji(&kl).is_ok());
    check_set(
        kl[0],
        &expect![[r#"
            error: `loss.weighting` is p2; allowed: { kind = "simple" } with loss.objective = "rescaled-kl"
              --> src/config/tests.toml:37:14
               |
            37 | weighting  = { kind = "p2", k = 1.0, gamma = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |
              because the variational bound weighs noise levels itself: no weight, that of P2 included, applies to it

            hint: change it where it stands, or override it with --set loss.weighting=VALUE"#]],
    );
    let x_prev = [
        "diffusion.prediction=x-prev",
        "sample.sampler=dpm-2m",
        "sample.spacing=karras",
    ];
    assert!(emoji(&x_prev[..2]).is_ok());
    expect![[r#"
        error: `sample.sampler` is dpm-2m with karras spacing; allowed: one that stays on timesteps, such as ancestral or ddim, with diffusion.prediction = "x-prev"
         --> --set:1:16
          |
        1 | sample.sampler=dpm-2m
          |
          because the mean of a step to the timestep before is none between timesteps

        hint: change it where it stands, or override it with --set sample.sampler=VALUE"#]].assert_eq(&render(emoji(&x_prev).unwrap_err()));
    check_set(
        "diffusion.schedule={zero-terminal-snr={of=\"cosine\"}}",
        &expect![[r#"
            error: `diffusion.prediction` is eps; allowed: x0, v or x-prev, with a schedule that ends in pure noise
              --> src/config/tests.toml:32:21
               |
            32 | prediction        = "eps"                             # as in the paper
               |

            hint: change it where it stands, or override it with --set diffusion.prediction=VALUE"#]],
    );
    check_file(
        "\"p2\"",
        "\"p3\"",
        &expect![[r#"
            error: unknown value `p3` for `loss.weighting.kind`
              --> my.toml:37:23
               |
            37 | weighting  = { kind = "p3", k = 1.0, gamma = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |

            hint: allowed here: `simple`, `p2`, `p2-scaled`, `vlb`, `vlb-continuous`, `likelihood`, `min-snr`, `max-snr`, `soft-min-snr`, `truncated-snr`, `v-uniform`, `x0-uniform`, `debiased`, `edm`, `sigmoid`, `flow-logit-normal`, `flow-mode`, `flow-cosmap`, `flow-sigma-sqrt`, `learned-uncertainty`, `adaptive-buckets`, `p2-raw`, `diffusers-v-min-snr`, `onetrainer-p2`, `kohya-debiased-v`"#]],
    );
}

#[test]
fn a_missing_key_or_section_is_named() {
    check_file(
        "eps           = 1e-8",
        "",
        &expect![[r#"
            error: missing key `eps` in [optim]
              --> my.toml:42:2
               |
            42 | [optim]
               |

            hint: every value stands in the file; `p2 train --preset smoke --dry-run` shows all"#]],
    );
    check_file(
        ", gamma = 1.0",
        "",
        &expect![[r#"
            error: missing key `gamma` in `loss.weighting`
              --> my.toml:37:1
               |
            37 | weighting  = { kind = "p2", k = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |

            hint: every value stands in the file; `p2 train --preset smoke --dry-run` shows all"#]],
    );
    check_file(
        "[sample]",
        "[train.more]",
        &expect![[r#"
            error: unknown key `more` in [train]
              --> my.toml:70:8
               |
            70 | [train.more]
               |

            hint: allowed here: `seed`, `batch_size`, `micro_batch_size`, `precision`, `recompute`, `total_images`, `log_every`, `held_out_every`, `sample_every`, `checkpoint_every`, `keep_last`, `keep_every`"#]],
    );
}

#[test]
fn a_wrong_type_is_named() {
    check_file(
        "\"2M\"",
        "\"2MM\"",
        &expect![[r#"
            error: `train.total_images`: expected a whole number of images such as 12800, "200k" or "1.5M", found the text "2MM"
              --> my.toml:62:20
               |
            62 | total_images     = "2MM"                               # some 600 epochs
               |"#]],
    );
    check_file(
        "= 1000 ",
        "= 1000.5 ",
        &expect![[r#"
            error: `diffusion.n_timesteps`: expected a whole number, 0 or more, found `1000.5`
              --> my.toml:29:21
               |
            29 | n_timesteps       = 1000.5                              # as in the paper
               |"#]],
    );
    check_file(
        "[1, 2, 2]",
        "[1, -2, 2]",
        &expect![[r#"
        error: `model.channel_mult`: expected a whole number, 0 or more, found `-2`
          --> my.toml:14:29
           |
        14 | channel_mult          = [1, -2, 2]                     # 64 at 32x32, 128 at 16x16 and 8x8
           |"#]],
    );
    check_file(
        "{ channels = 32 }",
        "32",
        &expect![[r#"
        error: `model.heads`: expected one of channels, count
          --> my.toml:17:25
           |
        17 | heads                 = 32             # two to four heads
           |"#]],
    );
    check_file(
        "k = 1.0",
        "k = true",
        &expect![[r#"
            error: `loss.weighting`: expected a number, found `true`
              --> my.toml:37:14
               |
            37 | weighting  = { kind = "p2", k = true, gamma = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |"#]],
    );
}

#[test]
fn a_value_out_of_range_is_named_with_the_range() {
    check_file(
        "channels              = 64",
        "channels              = 65",
        &expect![[r#"
            error: `model.channels` is 65; allowed: a multiple of 32, at most 65536
              --> my.toml:13:25
               |
            13 | channels              = 65                            # half of the paper's: a step takes a laptop well under a second
               |
              because each norm has 32 groups of channels

            hint: change it where it stands, or override it with --set model.channels=VALUE"#]],
    );
    check_file(
        "gamma = 1.0",
        "gamma = 7.0",
        &expect![[r#"
            error: `loss.weighting.gamma` is 7; allowed: 0 up to but not 5
              --> my.toml:37:46
               |
            37 | weighting  = { kind = "p2", k = 1.0, gamma = 7.0 }    # the paper's choice; gamma = 0 is the baseline
               |
              because at gamma = 5 the clean levels, which the eye sees first, weigh nothing against the noisy ones

            hint: change it where it stands, or override it with --set loss.weighting.gamma=VALUE"#]],
    );
}

#[test]
fn broken_toml_is_named_with_its_place() {
    check_file(
        "beta1         = 0.9 ",
        "beta1         = ",
        &expect![[r#"
            error: not TOML: string values must be quoted, expected literal string
              --> my.toml:46:51
               |
            46 | beta1         =                                   # usual
               |"#]],
    );
    check_file(
        "[ema]",
        "[optim]",
        &expect![[r#"
            error: not TOML: duplicate key
              --> my.toml:52:2
               |
            52 | [optim]
               |"#]],
    );
}

#[test]
fn a_flag_gets_the_same_checks_as_a_file() {
    check_set(
        "loss.weighting.gama=0.5",
        &expect![[r#"
        error: unknown key `gama` in `loss.weighting`
         --> --set:1:16
          |
        1 | loss.weighting.gama=0.5
          |

        hint: did you mean `gamma`?"#]],
    );
    check_set(
        "optim.lr=-1",
        &expect![[r#"
            error: `optim.lr` is -1; allowed: above 0, finite
             --> --set:1:10
              |
            1 | optim.lr=-1
              |

            hint: change it where it stands, or override it with --set optim.lr=VALUE"#]],
    );
    check_set(
        "optim.lr=fast",
        &expect![[r#"
        error: `optim.lr`: expected a number, found the text "fast"
         --> --set:1:10
          |
        1 | optim.lr=fast
          |"#]],
    );
    check_set(
        "lr.optim.x=1",
        &expect![[r#"
        error: unknown key `lr` in the configuration
         --> --set:1:1
          |
        1 | lr.optim.x=1
          |

        hint: allowed here: `data`, `model`, `diffusion`, `loss`, `optim`, `ema`, `train`, `sample`"#]],
    );
    check_set(
        "optim.lr.x=1",
        &expect![[r#"
        error: `x` lies inside a value that is no table
         --> --set:1:10
          |
        1 | optim.lr.x=1
          |"#]],
    );
    check_set(
        "model.channel_mult=[1, 2",
        &expect![[r#"
        error: not a TOML value: unclosed array, expected `]`
         --> --set:1:20
          |
        1 | model.channel_mult=[1, 2
          |"#]],
    );
    check_set(
        "nonsense",
        &expect![[r#"
        error: `nonsense` is not of the form section.key=value

        hint: write it like --set optim.lr=1e-4"#]],
    );
    check_set(
        "optim.=1",
        &expect![[r#"
        error: `optim.=1` is not of the form section.key=value

        hint: write it like --set optim.lr=1e-4"#]],
    );
    check_set(
        "loss.weighting.kind=simple",
        &expect![[r#"
            error: unknown key `k` in `loss.weighting`
              --> src/config/tests.toml:37:29
               |
            37 | weighting  = { kind = "p2", k = 1.0, gamma = 1.0 }    # the paper's choice; gamma = 0 is the baseline
               |

            hint: remove it; on the command line set the whole table, as in --set 'loss.weighting={ kind = "simple" }'"#]],
    );
}
