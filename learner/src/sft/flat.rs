//! All float parameters of a module as one flat vector, and back.
//!
//! The order is that in which the module visits its parameters.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::metrics::host;

/// The values of all parameters.
pub fn parameters<M: Module>(module: &M) -> Vec<f32> {
    read(|reader| module.visit(reader))
}

/// The module with the values of `flat`, on a device of the caller's choice. On an
/// autodiff device, all parameters are new leaves that take gradients.
///
/// # Panics
///
/// If there are more or fewer values than parameters.
pub fn with_parameters<M: Module>(module: M, flat: &[f32], device: &Device) -> M {
    write(flat, device, |writer| module.map(writer))
}

/// The gradients of all parameters; zero where one was not used.
pub fn gradients<M: Module>(module: &M, gradients: Gradients) -> Vec<f32> {
    read_gradients(gradients, |reader| module.visit(reader))
}

/// The values of the parameters that `visit` shows.
pub(super) fn read(visit: impl FnOnce(&mut Reader)) -> Vec<f32> {
    let mut reader = Reader(Vec::new());
    visit(&mut reader);
    reader.0
}

/// What `map` makes of parameters with the values of `flat`, see [`with_parameters`].
pub(super) fn write<'a, T>(
    flat: &'a [f32],
    device: &'a Device,
    map: impl FnOnce(&mut Writer<'a>) -> T,
) -> T {
    let mut writer = Writer { rest: flat, device };
    let mapped = map(&mut writer);
    assert!(
        writer.rest.is_empty(),
        "{} values too many",
        writer.rest.len()
    );
    mapped
}

/// The gradients of the parameters that `visit` shows; zero where one was not used.
pub(super) fn read_gradients(
    gradients: Gradients,
    visit: impl FnOnce(&mut GradientReader),
) -> Vec<f32> {
    let mut reader = GradientReader {
        gradients,
        flat: Vec::new(),
    };
    visit(&mut reader);
    reader.flat
}

pub(super) struct Reader(Vec<f32>);

impl ModuleVisitor for Reader {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.extend(host(param.val().inner()));
    }
}

pub(super) struct Writer<'a> {
    rest: &'a [f32],
    device: &'a Device,
}

impl ModuleMapper for Writer<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let (values, rest) = self.rest.split_at(shape.num_elements());
        self.rest = rest;
        let value = Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device);
        let trains = self.device.is_autodiff();
        Param::initialized(param.id, value.set_require_grad(trains))
    }
}

pub(super) struct GradientReader {
    gradients: Gradients,
    flat: Vec<f32>,
}

impl ModuleVisitor for GradientReader {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match param.val().grad_remove(&mut self.gradients) {
            Some(gradient) => self.flat.extend(host(gradient)),
            None => self
                .flat
                .resize(self.flat.len() + param.lazy_shape().num_elements(), 0.0),
        }
    }
}
