use burn::tensor::*;
use retouch_learner::{nft::*, gradient::*, state::*, metrics::StageTimes, adamw::AdamWConfig};
use retouch_models::{flux::*, lora::*};
use safetensors::SafeTensors;
fn f(st: &SafeTensors, n: &str) -> (Vec<f32>, Vec<usize>) { let v = st.tensor(n).unwrap();
  let x: Vec<f32> = match v.dtype() { safetensors::Dtype::F32 => bytemuck::pod_collect_to_vec(v.data()), safetensors::Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(v.data()).iter().map(|x| *x as f32).collect(), safetensors::Dtype::I64 => bytemuck::pod_collect_to_vec::<u8, i64>(v.data()).iter().map(|x| *x as f32).collect(), safetensors::Dtype::BOOL => v.data().iter().map(|x| *x as f32).collect(), d => panic!("{d:?}") }; (x, v.shape().to_vec()) }
#[test] fn golden() {
  let dev = Device::flex();
  for e in std::fs::read_dir("../tools/parity/cases").unwrap() { let p = e.unwrap().path(); let name = p.file_name().unwrap().to_str().unwrap().to_owned(); if !name.starts_with("nft_step") { continue }
    let toml = std::fs::read_to_string(p.join("case.toml")).unwrap();
    let get = |k: &str| toml.lines().find_map(|l| l.strip_prefix(&format!("{k} = "))).unwrap().trim_matches('"').to_owned();
    let num = |k: &str| get(k).parse::<f64>().unwrap();
    let bytes = std::fs::read(p.join("io.safetensors")).unwrap(); let st = SafeTensors::deserialize(&bytes).unwrap();
    let t3 = |n: &str| { let (v, s) = f(&st, n); Tensor::<3>::from_data(TensorData::new(v, [s[0], s[1], s[2]]), &dev) };
    let t2 = |n: &str| { let (v, s) = f(&st, n); Tensor::<2>::from_data(TensorData::new(v, [s[0], s[1]]), &dev) };
    let t1 = |n: &str| { let (v, s) = f(&st, n); Tensor::<1>::from_data(TensorData::new(v, [s[0]]), &dev) };
    let tr = FluxTransformer::load(&p, &dev).unwrap();
    let read = |file: &str| { let b = std::fs::read(p.join(file)).unwrap(); let st = SafeTensors::deserialize(&b).unwrap(); 
       st.names().into_iter().map(|n| (n.to_owned(), f(&st, n))).collect::<std::collections::BTreeMap<_,_>>() };
    let (th, ol) = (read("lora_theta.safetensors"), read("lora_old.safetensors"));
    let starts = |k: &str, n: String| k.strip_prefix("base_model.model.").unwrap_or(k).starts_with(&n);
    let targets: Vec<String> = tr.projections().iter().filter(|p| th.keys().any(|k| starts(k, format!("{}.lora_A", p.name)))).map(|p| p.name.clone()).collect();
    let flat = |m: &std::collections::BTreeMap<String, (Vec<f32>, Vec<usize>)>| tr.projections().iter().filter(|p| targets.contains(&p.name)).flat_map(|p| ["A","B"].map(|ab| m[m.keys().find(|k| starts(k, format!("{}.lora_{ab}", p.name))).unwrap()].0.clone()).concat()).collect::<Vec<f32>>();
    let cfg = LoraConfig { rank: num("rank") as usize, alpha: num("alpha"), target_modules: targets.clone() };
    println!("{name}: {} targets, keys {:?}", targets.len(), th.keys().take(2).collect::<Vec<_>>());
    let (theta, old) = (flat(&th), flat(&ol));
    let at = LoraAdapter::from_flat(&cfg, tr.projections(), &theta, &dev.clone().autodiff());
    let ao = LoraAdapter::from_flat(&cfg, tr.projections(), &old, &dev);
    let has_guidance = st.names().iter().any(|n| *n == "in.guidance");
    let velocity = |x: Tensor<3>, t: Tensor<1>, a: Option<&LoraAdapter>| { let s = x.dims()[1];
       tr.forward(FluxInput { hidden_states: Tensor::cat(vec![x, t3("in.image_latents")], 1), encoder_hidden_states: t3("in.encoder_hidden_states"), pooled_projections: t2("in.pooled_projections"), timestep: t, guidance: has_guidance.then(|| t1("in.guidance")), img_ids: t2("in.img_ids"), txt_ids: t2("in.txt_ids") }, a).narrow(1, 0, s) };
    let batch = PairBatch { x0: t3("in.x0"), noise: t3("in.noise"), t: f(&st, "in.t").0, advantages: f(&st, "in.advantages").0.iter().map(|x| *x as f64).collect(), valid: f(&st, "in.valid").0.iter().map(|x| *x != 0.0).collect() };
    let mut times = StageTimes::default();
    let nft = NftConfig { beta: num("beta"), kl_beta: num("kl_beta"), adv_clip_max: num("adv_clip_max"), adv_mode: serde_json::from_str(&format!("{:?}", get("adv_mode"))).unwrap() };
    let r = pair_gradient(&velocity, Policies { theta: &at, old: Some(&ao) }, &batch, &nft, &mut times);
    let n = r.loss.count as f32;
    let g: Vec<f32> = r.gradient.iter().map(|g| g / n).collect();
    println!("  loss {} vs {:?}", r.loss.loss.into_scalar::<f32>() / n, f(&st, "out.loss").0);
    let names: Vec<String> = tr.projections().iter().filter(|p| targets.contains(&p.name)).flat_map(|p| ["A","B"].map(|ab| format!("{}.lora_{ab}", p.name))).collect();
    let check = |prefix: &str, ours: &[f32]| { let mut off = 0; let mut worst = 0f32;
       for nm in &names { let k = st.names().iter().find(|k| k.starts_with(prefix) && k.contains(&format!("{nm}."))).unwrap_or_else(|| panic!("{prefix} {nm} {:?}", st.names())).to_string(); let w = f(&st, &k).0;
         let m = w.iter().fold(0f32, |a, b| a.max(b.abs())); let e = w.iter().zip(&ours[off..off + w.len()]).fold(0f32, |a, (x, y)| a.max((x - y).abs())); off += w.len(); if m > 0. { worst = worst.max(e / m) } }
       println!("  {prefix} worst {worst:.1e}"); assert!(worst < 1e-4) };
    check("grad.", &g);
    let mut s = LearnerState::initial(theta); s.old = old;
    s.apply(g, &Update { adamw: AdamWConfig { learning_rate: num("learning_rate"), beta1: num("adam_beta1"), beta2: num("adam_beta2"), epsilon: num("adam_epsilon"), weight_decay: num("weight_decay") }, max_grad_norm: num("max_grad_norm"), eta: num("eta"), ema_decay: num("ema_decay") });
    check("theta.", &s.theta); check("old.", &s.old); check("ema.", &s.ema);
  } }
