//! The lists of presets and of options.

use std::process::Stdio;

use expect_test::expect;
use tempfile::tempdir;

use super::program::{check, p2};

#[test]
fn presets_are_listed() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["presets"],
        &expect![[r#"
            exit: 0
            --- stdout
            smoke                        a tiny network on the bundled emoji: seconds, to see that everything works
            emoji-32                     32x32 emoji with P2 weighting: bundled images, ten minutes on two CPU cores
            bench-small                  the small network of docs/performance.md: 32x32, 5.7 million parameters, for p2 bench
            bench-medium                 the medium network of docs/performance.md: 64x64, 56 million parameters, for p2 bench
            paper-256                    the paper's 256x256 configuration (Choi et al. 2022): your own images, a large GPU, days
            p2-ffhq-256                  FFHQ at 256x256 (Choi et al. 2022): the 70,000 faces, a large GPU, weeks
            p2-celebahq-256              CelebA-HQ at 256x256 (Choi et al. 2022): the 30,000 faces, a large GPU, weeks
            p2-cub-256                   CUB-200-2011 at 256x256 (Choi et al. 2022): the 11,788 birds, a large GPU, days
            p2-afhq-dog-256              AFHQ-dog at 256x256 (Choi et al. 2022): some 5,000 dogs, a large GPU, days
            p2-flowers-256               Oxford Flowers-102 at 256x256 (Choi et al. 2022): the 8,189 flowers, a large GPU, days
            p2-metfaces-256              MetFaces at 256x256 (Choi et al. 2022): the 1,336 painted faces, a large GPU, days
            p2-cub-256-conv-resample     the paper's ablation without BigGAN blocks, on CUB: 80.7 million parameters
            p2-cub-256-attention-middle  the paper's ablation with attention at 8x8 alone, on CUB: 90.4 million parameters
            p2-cub-256-two-res-blocks    the paper's ablation with two residual blocks per level, on CUB: 131.7 million parameters
            p2-cub-256-fast              the paper's ablation with a learning rate of 2.5e-5, on CUB
            ddpm-cifar10                 DDPM on CIFAR-10 (Ho et al. 2020) in ADM's network: 32x32, your own copy of the images
            ddpm-256                     DDPM at 256x256 (Ho et al. 2020) in ADM's network: CelebA-HQ, LSUN or your own images
            iddpm-cifar10                Improved DDPM on CIFAR-10 (Nichol and Dhariwal 2021): 32x32, L_hybrid, your own copy of the images
            iddpm-cifar10-vlb            Improved DDPM for likelihood on CIFAR-10 (Nichol and Dhariwal 2021): 32x32, L_vlb, your own copy of the images
            iddpm-64                     Improved DDPM at 64x64 (Nichol and Dhariwal 2021): ImageNet or your own images, L_hybrid
            iddpm-64-vlb                 Improved DDPM for likelihood at 64x64 (Nichol and Dhariwal 2021): ImageNet or your own images, L_vlb
            adm-64                       ADM at 64x64 (Dhariwal and Nichol 2021): 296 million parameters, classes of ImageNet or your own
            adm-128                      ADM at 128x128 (Dhariwal and Nichol 2021): 422 million parameters, classes of ImageNet or your own
            adm-256                      ADM at 256x256 (Dhariwal and Nichol 2021): 554 million parameters, classes of ImageNet or your own
            adm-256-uncond               ADM at 256x256 without classes (Dhariwal and Nichol 2021): 553 million parameters, your own images
            adm-lsun-256                 ADM on LSUN at 256x256 (Dhariwal and Nichol 2021): 553 million parameters, bedrooms, cats or horses
            adm-64-256                   ADM from 64x64 to 256x256 (Dhariwal and Nichol 2021): 312 million parameters, enlarges what adm-64 draws
            edm-cifar10                  EDM's process on CIFAR-10 (Karras et al. 2022) in ADM's network: 32x32, your own copy of the images
            edm-64                       EDM's process at 64x64 (Karras et al. 2022) in ADM's network: classes of ImageNet or your own
            classifier-64                ADM's classifier of noised 64x64 images (Dhariwal and Nichol 2021): your own images, in a folder per class
            classifier-128               ADM's classifier of noised 128x128 images (Dhariwal and Nichol 2021): your own images, in a folder per class
            classifier-256               ADM's classifier of noised 256x256 images (Dhariwal and Nichol 2021): your own images, in a folder per class
            --- stderr

            use one with `p2 train --preset NAME`, those of classifiers with `p2 train-classifier --preset NAME`; add --dry-run to see its values
        "#]],
    );
    check(
        folder.path(),
        &["-q", "presets", "--json"],
        &expect![[r#"
            exit: 0
            --- stdout
            [{"command":"train","name":"smoke","summary":"a tiny network on the bundled emoji: seconds, to see that everything works"},{"command":"train","name":"emoji-32","summary":"32x32 emoji with P2 weighting: bundled images, ten minutes on two CPU cores"},{"command":"train","name":"bench-small","summary":"the small network of docs/performance.md: 32x32, 5.7 million parameters, for p2 bench"},{"command":"train","name":"bench-medium","summary":"the medium network of docs/performance.md: 64x64, 56 million parameters, for p2 bench"},{"command":"train","name":"paper-256","summary":"the paper's 256x256 configuration (Choi et al. 2022): your own images, a large GPU, days"},{"command":"train","name":"p2-ffhq-256","summary":"FFHQ at 256x256 (Choi et al. 2022): the 70,000 faces, a large GPU, weeks"},{"command":"train","name":"p2-celebahq-256","summary":"CelebA-HQ at 256x256 (Choi et al. 2022): the 30,000 faces, a large GPU, weeks"},{"command":"train","name":"p2-cub-256","summary":"CUB-200-2011 at 256x256 (Choi et al. 2022): the 11,788 birds, a large GPU, days"},{"command":"train","name":"p2-afhq-dog-256","summary":"AFHQ-dog at 256x256 (Choi et al. 2022): some 5,000 dogs, a large GPU, days"},{"command":"train","name":"p2-flowers-256","summary":"Oxford Flowers-102 at 256x256 (Choi et al. 2022): the 8,189 flowers, a large GPU, days"},{"command":"train","name":"p2-metfaces-256","summary":"MetFaces at 256x256 (Choi et al. 2022): the 1,336 painted faces, a large GPU, days"},{"command":"train","name":"p2-cub-256-conv-resample","summary":"the paper's ablation without BigGAN blocks, on CUB: 80.7 million parameters"},{"command":"train","name":"p2-cub-256-attention-middle","summary":"the paper's ablation with attention at 8x8 alone, on CUB: 90.4 million parameters"},{"command":"train","name":"p2-cub-256-two-res-blocks","summary":"the paper's ablation with two residual blocks per level, on CUB: 131.7 million parameters"},{"command":"train","name":"p2-cub-256-fast","summary":"the paper's ablation with a learning rate of 2.5e-5, on CUB"},{"command":"train","name":"ddpm-cifar10","summary":"DDPM on CIFAR-10 (Ho et al. 2020) in ADM's network: 32x32, your own copy of the images"},{"command":"train","name":"ddpm-256","summary":"DDPM at 256x256 (Ho et al. 2020) in ADM's network: CelebA-HQ, LSUN or your own images"},{"command":"train","name":"iddpm-cifar10","summary":"Improved DDPM on CIFAR-10 (Nichol and Dhariwal 2021): 32x32, L_hybrid, your own copy of the images"},{"command":"train","name":"iddpm-cifar10-vlb","summary":"Improved DDPM for likelihood on CIFAR-10 (Nichol and Dhariwal 2021): 32x32, L_vlb, your own copy of the images"},{"command":"train","name":"iddpm-64","summary":"Improved DDPM at 64x64 (Nichol and Dhariwal 2021): ImageNet or your own images, L_hybrid"},{"command":"train","name":"iddpm-64-vlb","summary":"Improved DDPM for likelihood at 64x64 (Nichol and Dhariwal 2021): ImageNet or your own images, L_vlb"},{"command":"train","name":"adm-64","summary":"ADM at 64x64 (Dhariwal and Nichol 2021): 296 million parameters, classes of ImageNet or your own"},{"command":"train","name":"adm-128","summary":"ADM at 128x128 (Dhariwal and Nichol 2021): 422 million parameters, classes of ImageNet or your own"},{"command":"train","name":"adm-256","summary":"ADM at 256x256 (Dhariwal and Nichol 2021): 554 million parameters, classes of ImageNet or your own"},{"command":"train","name":"adm-256-uncond","summary":"ADM at 256x256 without classes (Dhariwal and Nichol 2021): 553 million parameters, your own images"},{"command":"train","name":"adm-lsun-256","summary":"ADM on LSUN at 256x256 (Dhariwal and Nichol 2021): 553 million parameters, bedrooms, cats or horses"},{"command":"train","name":"adm-64-256","summary":"ADM from 64x64 to 256x256 (Dhariwal and Nichol 2021): 312 million parameters, enlarges what adm-64 draws"},{"command":"train","name":"edm-cifar10","summary":"EDM's process on CIFAR-10 (Karras et al. 2022) in ADM's network: 32x32, your own copy of the images"},{"command":"train","name":"edm-64","summary":"EDM's process at 64x64 (Karras et al. 2022) in ADM's network: classes of ImageNet or your own"},{"command":"train-classifier","name":"classifier-64","summary":"ADM's classifier of noised 64x64 images (Dhariwal and Nichol 2021): your own images, in a folder per class"},{"command":"train-classifier","name":"classifier-128","summary":"ADM's classifier of noised 128x128 images (Dhariwal and Nichol 2021): your own images, in a folder per class"},{"command":"train-classifier","name":"classifier-256","summary":"ADM's classifier of noised 256x256 images (Dhariwal and Nichol 2021): your own images, in a folder per class"}]
            --- stderr
        "#]],
    );
}

#[test]
fn options_have_one_line_each() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Train and sample image diffusion models with perception-prioritized (P2) loss weighting

            Usage: p2 [OPTIONS] <COMMAND>

            Commands:
              train             Train a model, or continue to train it
              train-classifier  Train a classifier of noised images, to guide a model with
              sample            Draw images from a trained model
              encode            Turn images into the noise that a model draws them from
              likelihood        Bound how many bits a model needs for images
              convert           Turn weights of PyTorch into a model, or back
              presets           List the configurations that need no file
              info              Say what a model or a preset is
              bench             Measure how fast this machine trains and draws
              weights           Show loss weightings and what they minimize

            Options:
              -q, --quiet         Tell only warnings and errors
              -v, --verbose       Tell more
                  --color <WHEN>  When to color text for people [default: auto] [possible values: auto, always,
                                  never]
              -h, --help          Print help
              -V, --version       Print version

            Example: p2 train --preset smoke
            --- stderr
        "#]],
    );
    check(
        folder.path(),
        &["train", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Train a model, or continue to train it

            Usage: p2 train [OPTIONS] <CONFIG.toml|--preset <NAME>>

            Arguments:
              [CONFIG.toml]  Configuration file

            Options:
                  --preset <NAME>            Configuration by name; see `p2 presets`
                  --data <PATH>              Folder or .zip of images, or bundled:emoji-32 [default: data.path]
                  --out <DIR>                Folder of the run [default: runs/NAME]
                  --set <SECTION.KEY=VALUE>  Set one value of the configuration; may be given many times
                  --seed <N>                 Seed of every random draw [default: train.seed]
                  --threads <N>              Threads to compute with; changes no result [default: one per core]
                  --device <DEVICE>          Where to compute; this build knows cpu [default: cpu]
                  --max-images <IMAGES>      Stop once the run has seen so many images, such as 200k
                  --max-steps <STEPS>        Stop after so many optimizer steps from now
                  --max-minutes <MINUTES>    Stop after so many minutes from now
                  --resume                   Insist that there is a run to continue
                  --fresh                    Insist that there is no run yet
                  --dry-run                  Print the resolved configuration as TOML, and the memory that it
                                             takes; start no run
                  --json                     Print the results as JSON
                  --init-from <MODEL>        Begin with the weights of a run, a checkpoint or a file, for other
                                             images, classes or weights of the loss
              -q, --quiet                    Tell only warnings and errors
              -v, --verbose                  Tell more
                  --color <WHEN>             When to color text for people [default: auto] [possible values:
                                             auto, always, never]
              -h, --help                     Print help

            Example: p2 train --preset emoji-32 --set loss.weighting.gamma=0.5 --out runs/half
            The same command again continues an unfinished run.
            --- stderr
        "#]],
    );
}

#[test]
fn options_of_models_have_one_line_each() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["sample", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Draw images from a trained model

            Usage: p2 sample [OPTIONS] --out <DIR> <--n-images <IMAGES>|--codes <FILE.safetensors>> [MODEL]

            Arguments:
              [MODEL]  A run, a checkpoint or a .safetensors file

            Options:
                  --cascade <BASE,SR>               Draw with the first of these models and enlarge with the
                                                    others, in place of MODEL
                  --low-res <PATH>                  Folder or .zip of images that a super-resolution model
                                                    enlarges, in turn
                  --n-images <IMAGES>               How many images [default with --codes: all]
                  --sampler <SAMPLER>               How to sample [default: sample.sampler of the model]
                                                    [possible values: ancestral, ddim, euler, heun, heun-churn,
                                                    euler-ancestral, dpm-2m, dpm-3m, dpm-2s, unipc, plms, flow,
                                                    pc-vp, pc-ve]
                  --steps <STEPS>                   Steps from noise to image [default: sample.n_steps of the
                                                    model]
                  --spacing <SPACING>               Which noise levels the steps lead through [default:
                                                    sample.spacing of the model] [possible values: even,
                                                    leading, trailing, karras]
                  --respacing <SPEC>                The same by name, as the reference code has it: 250, ddim50,
                                                    or the steps of equal sections, 10,15,25
                  --eta <SHARE>                     Share of fresh noise per step, 0 to 1 [default: sample.eta
                                                    for the model's own sampler, else 0, euler-ancestral 1]
                  --seed <N>                        Seed of the noise; image i of a seed is always the same
                                                    [default: 0]
                  --class <CLASS>                   Class of the images, counted from 0 [default: all in turn]
                  --guidance-scale <SCALE>          How far to go from the guess without a class through the one
                                                    with it; 1 is not at all [default: sample.guidance of the
                                                    model]
                  --guidance-sigmas <LEAST> <MOST>  Guide only between these amounts of noise per unit of data
                  --guide <MODEL>                   Guide away from the guess of another model, such as a
                                                    smaller one
                  --classifier <CLASSIFIER>         Guide along the gradient of a classifier, as p2
                                                    train-classifier makes them
                  --classifier-scale <SCALE>        How far the classifier guides [default: 1]
                  --classifier-form <FORM>          What the classifier's gradient moves [default: mean for
                                                    ancestral, else score] [possible values: score, mean, exact]
                  --codes <FILE.safetensors>        Draw the images of these codes again, by the deterministic
                                                    steps of p2 encode
                  --interpolate <IMAGES>            Draw so many images between each code and the next as well
                  --batch-size <IMAGES>             Images computed at once; changes no result [default: 16]
                  --threads <N>                     Threads to compute with; changes no result [default: one per
                                                    core]
                  --raw <FILE.safetensors>          Save the unrounded pixels as well, in [-1, 1] and [N, H, W,
                                                    C]
                  --npz <FILE.npz>                  Save all images in one file as well, as the evaluator of
                                                    guided-diffusion reads them
                  --json                            Print the results as JSON
                  --out <DIR>                       Folder of the images
              -q, --quiet                           Tell only warnings and errors
              -v, --verbose                         Tell more
                  --color <WHEN>                    When to color text for people [default: auto] [possible
                                                    values: auto, always, never]
              -h, --help                            Print help

            Example: p2 sample runs/emoji-32 --n-images 64 --steps 50 --out samples
            --- stderr
        "#]],
    );
    check(
        folder.path(),
        &["encode", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Turn images into the noise that a model draws them from

            Usage: p2 encode [OPTIONS] --data <PATH> --out <FILE.safetensors> <MODEL>

            Arguments:
              <MODEL>  A run, a checkpoint or a .safetensors file

            Options:
                  --data <PATH>             Folder or .zip of images, or bundled:emoji-32
                  --n-images <IMAGES>       How many images, in the order of their names [default: all]
                  --steps <STEPS>           Steps from image to noise: more are more exact [default: 100]
                  --class <CLASS>           Class of the images, counted from 0 [default: that of their folder]
                  --batch-size <IMAGES>     Images computed at once; changes no result [default: 16]
                  --threads <N>             Threads to compute with; changes no result [default: one per core]
                  --check                   Draw the images again, and say how far they are off
                  --json                    Print the results as JSON
                  --out <FILE.safetensors>  File of the codes
              -q, --quiet                   Tell only warnings and errors
              -v, --verbose                 Tell more
                  --color <WHEN>            When to color text for people [default: auto] [possible values:
                                            auto, always, never]
              -h, --help                    Print help

            Example: p2 encode runs/emoji-32 --data bundled:emoji-32 --n-images 8 --out codes.safetensors
            p2 sample MODEL --codes FILE draws the images again, and with --interpolate those between them.
            --- stderr
        "#]],
    );
}

#[test]
fn options_of_weightings_have_one_line_each() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["weights", "list", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            List the weightings, with formula and source

            Usage: p2 weights list [OPTIONS]

            Options:
                  --json          Print the results as JSON
              -q, --quiet         Tell only warnings and errors
              -v, --verbose       Tell more
                  --color <WHEN>  When to color text for people [default: auto] [possible values: auto, always,
                                  never]
              -h, --help          Print help

            Example: p2 weights list
            --- stderr
        "#]],
    );
    check(
        folder.path(),
        &["weights", "show", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Show weightings level by level, and what they minimize

            Usage: p2 weights show [OPTIONS] <WEIGHTING>...

            Arguments:
              <WEIGHTING>...  Weightings as KIND or KIND:KEY=VALUE,...; see `p2 weights list`

            Options:
                  --schedule <SCHEDULE>  Noise schedule, as in diffusion.schedule [default: linear]
                  --prediction <TARGET>  What the network predicts: eps, x0, v or x-prev [default: eps]
                  --density <DENSITY>    How often levels are drawn, as in loss.density [default: uniform]
                  --timesteps <LEVELS>   Number of noise levels [default: 1000]
                  --png <FILE>           Draw the weights against the SNR into this file
                  --csv <FILE>           Write all levels into this file
                  --json                 Print the results as JSON
              -q, --quiet                Tell only warnings and errors
              -v, --verbose              Tell more
                  --color <WHEN>         When to color text for people [default: auto] [possible values: auto,
                                         always, never]
              -h, --help                 Print help

            Example: p2 weights show simple p2:gamma=1,k=1 min-snr:gamma=5 --schedule cosine --png weights.png
            --- stderr
        "#]],
    );
}

#[test]
fn options_of_files_and_bounds_have_one_line_each() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["convert", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Turn weights of PyTorch into a model, or back

            Usage: p2 convert [OPTIONS] <IN> <OUT>

            Arguments:
              <IN>   A .pt or .pth file of PyTorch, or a run, a checkpoint or a .safetensors file
              <OUT>  A .safetensors file, or a .pt or .pth file

            Options:
                  --preset <NAME>            What the weights of a PyTorch file are: a configuration by name
                                             [default: what they say, and --set]
                  --like <MODEL>             What the weights of a PyTorch file are: the same as in another
                                             model
                  --set <SECTION.KEY=VALUE>  Set one value of the preset, or one that the weights do not say;
                                             may be given many times
                  --key <NAME>               Where in the file the weights lie, such as `ema` or `state_dict`
                                             [default: at its top]
              -q, --quiet                    Tell only warnings and errors
              -v, --verbose                  Tell more
                  --color <WHEN>             When to color text for people [default: auto] [possible values:
                                             auto, always, never]
              -h, --help                     Print help

            Examples: p2 convert ffhq_p2.pt ffhq.safetensors --preset paper-256
                      p2 convert ema_0.9999_010000.pt ema.safetensors
                      p2 convert opt010000.pt optimizer.safetensors --like ema.safetensors
                      p2 convert runs/emoji-32 emoji.pt
            --- stderr
        "#]],
    );
    check(
        folder.path(),
        &["likelihood", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Bound how many bits a model needs for images

            Usage: p2 likelihood [OPTIONS] --data <PATH> <MODEL>

            Arguments:
              <MODEL>  A run, a checkpoint or a .safetensors file

            Options:
                  --data <PATH>          Folder or .zip of images, or bundled:emoji-32
                  --training             Bound the images that the model was trained on, not those held out
                  --n-images <IMAGES>    How many images [default: all]
                  --steps <STEPS>        Levels of the bound, evenly spaced: fewer are faster and bound worse
                                         [default: all]
                  --exact                Estimate the likelihood under the probability flow instead, without a
                                         bound on it
                  --probes <PROBES>      Random probes of the flow for each image: more are less noisy and
                                         slower [default: 1]
                  --tolerance <ERROR>    Error that each step of the flow may make [default: 1e-5]
                  --seed <N>             Seed of the noise [default: 0]
                  --batch-size <IMAGES>  Images computed at once; changes no result [default: 16]
                  --threads <N>          Threads to compute with; changes no result [default: one per core]
                  --csv <FILE>           Write the terms of all levels into this file
                  --json                 Print the results as JSON
              -q, --quiet                Tell only warnings and errors
              -v, --verbose              Tell more
                  --color <WHEN>         When to color text for people [default: auto] [possible values: auto,
                                         always, never]
              -h, --help                 Print help

            Example: p2 likelihood runs/emoji-32 --data bundled:emoji-32 --n-images 20 --steps 100
            The bound is that of random steps; --exact is for the deterministic flow of the same network, and
            may lie on either side of it. It is an unbiased estimate of the log-density of pixels with uniform
            noise added: whole pixels need no more bits than that.
            --- stderr
        "#]],
    );
}

#[test]
fn options_of_measuring_have_one_line_each() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["bench", "--help"],
        &expect![[r#"
            exit: 0
            --- stdout
            Measure how fast this machine trains and draws

            Usage: p2 bench [OPTIONS]

            Options:
                  --preset <NAME>            Configuration by name; see `p2 presets` [default: bench-small]
                  --set <SECTION.KEY=VALUE>  Set one value of the configuration; may be given many times
                  --batch-size <IMAGES>      Images computed at once [default: train.micro_batch_size]
                  --steps <STEPS>            Timed steps, after two that warm up [default: 5]
                  --sampling                 Draw images as the preset says, do not train; a step is one drawing
                  --threads <N>              Threads to compute with [default: one per core]
                  --json                     Print the results as JSON, with the seconds of every step
              -q, --quiet                    Tell only warnings and errors
              -v, --verbose                  Tell more
                  --color <WHEN>             When to color text for people [default: auto] [possible values:
                                             auto, always, never]
              -h, --help                     Print help

            Example: p2 bench --preset emoji-32
            Times vary: let the machine do nothing else, and measure more than once.
            --- stderr
        "#]],
    );
}

#[test]
fn an_unknown_flag_is_corrected() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["train", "--presets", "smoke"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: unexpected argument '--presets' found

              tip: a similar argument exists: '--preset'

            Usage: p2 train <CONFIG.toml|--preset <NAME>>

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn color_is_off_without_a_terminal_and_on_when_asked_for() {
    let folder = tempdir().unwrap();
    let stderr = |arguments: &[&str]| {
        String::from_utf8(p2(folder.path(), arguments).output().unwrap().stderr).unwrap()
    };
    let plain = stderr(&["train", "x.toml"]);
    assert!(!plain.contains('\x1b'));
    let colored = stderr(&["train", "x.toml", "--color", "always"]);
    assert!(colored.contains("\x1b[1;31merror:\x1b[0m"), "{colored:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = p2(folder.path(), &["train", "--preset", "smoke", "--dry-run"]);
    let output = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("error"), "{stderr}");
}
