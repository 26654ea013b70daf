use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};

use super::{LoadError, Names, Table, Weights};
use crate::memory;

impl Weights {
    /// Fills every float parameter of `module` with the tensor of its name, as f32.
    ///
    /// Parameters that were not initialised yet never are: they take the file's values straight
    /// away. Devices and gradient settings stay as the module has them.
    ///
    /// # Errors
    /// [`LoadError::Mismatch`] with all names that are missing, unexpected or of another shape,
    /// before any of the tensors is read.
    pub fn load<M: Module>(&self, module: M, names: &Names) -> Result<M, LoadError> {
        self.load_as(module, names, DType::F32)
    }

    /// As [`Weights::load`], with the parameters stored as `dtype` (f32, bf16 or f16).
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_as<M: Module>(
        &self,
        module: M,
        names: &Names,
        dtype: DType,
    ) -> Result<M, LoadError> {
        let misfit = Table::of(&module, names).misfit(self);
        if !misfit.is_none() {
            return Err(LoadError::Mismatch {
                path: self.path().to_owned(),
                misfit: Box::new(misfit),
            });
        }
        Ok(module.map(&mut Loader {
            weights: self,
            names,
            dtype,
            path: Vec::new(),
        }))
    }
}

struct Loader<'a> {
    weights: &'a Weights,
    names: &'a Names,
    dtype: DType,
    path: Vec<String>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names.key(&self.path.join("."));
        let data = self.weights.data_as(&name, self.dtype);
        let data = data.expect("a tensor that the table found");
        let (device, id) = (param.lazy_device(), param.id);
        let tensor = memory::kept(&device, data, |data| {
            Tensor::from_data(data, (&device, self.dtype))
        });
        param.transform_for_load(tensor, id)
    }
}
