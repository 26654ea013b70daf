//! The method's own arithmetic: schedule, solvers, advantage, loss and LoRA.

use burn::tensor::{Device, Int, Tensor, TensorData};
use retouch_coordinator::{advantage, filter};
use retouch_learner::nft;
use retouch_models::scheduler::FlowMatchScheduler;
use retouch_models::solver;
use retouch_proto::config::FilterConfig;

use crate::case::Case;
use crate::compare::Outputs;

/// The reference masks pairs; here they are left out before the loss sees them.
pub(crate) fn nft_loss(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let valid = valid(case)?;
    let count = valid.len() as f64;
    let rows: Vec<i64> = valid.iter().map(|&row| row as i64).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [valid.len()]), device);
    let input = |name: &str| anyhow::Ok(case.input::<3>(name, device)?.select(0, rows.clone()));
    let v_theta = case
        .input::<3>("v_theta", &device.clone().autodiff())?
        .require_grad();
    let velocities = nft::Velocities {
        v_theta: v_theta.clone().select(0, rows.clone()),
        v_old: Some(input("v_old")?),
        v_ref: Some(input("v_ref")?),
    };
    let (x0, t) = (input("x0")?, of(&valid, &levels(case)?));
    let batch = nft::NftBatch {
        x_t: nft::add_noise(x0.clone(), input("noise")?, &t),
        x0,
        t,
        advantages: of(&valid, &case.values("advantages")?),
    };
    let loss = nft::nft_loss(&batch, velocities, &nft_config(case)?);
    let mean = loss.loss / count;
    let gradients = mean.clone().backward();
    let gradient = v_theta
        .grad(&gradients)
        .expect("the loss depends on v_theta");
    let mean_of = |terms: Tensor<1>| terms.into_data().iter::<f64>().sum::<f64>() / count;
    Ok(Outputs::default()
        .float("out.loss", mean.inner())
        .values(
            "out.policy_loss",
            vec![mean_of(loss.terms.policy_loss)],
            &[1],
        )
        .values("out.kl", vec![mean_of(loss.terms.kl)], &[1])
        .float("grad.v_theta", gradient))
}

/// The noise levels t [B].
pub(crate) fn levels(case: &Case) -> anyhow::Result<Vec<f32>> {
    Ok(case.values("t")?.into_iter().map(|t| t as f32).collect())
}

/// The positions of the pairs that count.
pub(crate) fn valid(case: &Case) -> anyhow::Result<Vec<usize>> {
    let valid = case.values("valid")?.into_iter().enumerate();
    Ok(valid.filter(|(_, v)| *v != 0.0).map(|(i, _)| i).collect())
}

fn of<T: Copy>(rows: &[usize], values: &[T]) -> Vec<T> {
    rows.iter().map(|&row| values[row]).collect()
}

pub(crate) fn nft_config(case: &Case) -> anyhow::Result<nft::NftConfig> {
    Ok(nft::NftConfig {
        beta: case.number("beta")?,
        kl_beta: case.number("kl_beta")?,
        adv_clip_max: case.number("adv_clip_max")?,
        adv_mode: case.choice("adv_mode")?,
    })
}

pub(crate) fn scheduler(case: &Case) -> anyhow::Result<Outputs> {
    let scheduler = FlowMatchScheduler::from_file(&case.path("config.json"))?;
    let sigmas = scheduler.sigmas(
        case.count("num_inference_steps")?,
        case.count("image_seq_len")?,
    )?;
    let timesteps: Vec<f32> = sigmas[..sigmas.len() - 1]
        .iter()
        .map(|sigma| sigma * 1000.0)
        .collect();
    Ok(Outputs::default()
        .list("out.timesteps", timesteps)
        .list("out.sigmas", sigmas))
}

pub(crate) fn solver(case: &Case, device: &Device) -> anyhow::Result<Outputs> {
    let solver = case.text("solver")?.parse()?;
    let sigmas: Vec<f32> = case
        .values("sigmas")?
        .into_iter()
        .map(|sigma| sigma as f32)
        .collect();
    let (a, b) = (case.input::<1>("a", device)?, case.input::<1>("b", device)?);
    let mut latents = Vec::new();
    let velocity = |x: Tensor<3>, sigma: f32| {
        latents.push(x.clone());
        let slope = a.clone().unsqueeze::<3>();
        (x * slope).tanh() + b.clone().unsqueeze::<3>() * sigma
    };
    let x0 = solver::sample(solver, &sigmas, case.input("z", device)?, velocity);
    latents.push(x0);
    Ok(Outputs::default().float("out.latents", Tensor::stack::<4>(latents, 0)))
}

pub(crate) fn advantage(case: &Case) -> anyhow::Result<Outputs> {
    let [groups, size] = case.dims("rewards")?;
    let rewards: Vec<Vec<f64>> = case
        .values("rewards")?
        .chunks(size)
        .map(<[f64]>::to_vec)
        .collect();
    let filter = FilterConfig {
        rule: case.choice("filter")?,
        tau_mean: case.number("tau_mean")?,
        tau_std: case.number("tau_std")?,
        ..FilterConfig::default()
    };
    let keep = filter::keep(&rewards, &filter)
        .into_iter()
        .map(|keep| f64::from(u8::from(keep)))
        .collect();
    let advantages = advantage::advantages(&rewards, case.choice("std")?).concat();
    Ok(Outputs::default()
        .values("out.advantages", advantages, &[groups, size])
        .values("out.keep", keep, &[groups]))
}
