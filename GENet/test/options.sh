# shellcheck shell=bash
# The options that all scripts of this model have beside the common ones: which network, which data set.
# shellcheck source=common/test.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../common/test.sh"

case_example="--data_path=/data/cifar"
# shellcheck disable=SC2034 # `parse` sets them, the scripts use them
dataset="" depth="" width="" extent="" extra_params="" mlp="" seed=""
without_option skip_bad_images # the files hold pixels, not compressed images: a batch file is good or not
option dataset cifar10 "cifar10|cifar100" "the data set"
option depth 16 positive "layers of the wide residual network, 6n + 4"
option width 8 positive "its widening factor"
option extent 0 "0|2|4|8" "pixels that one gathered value stands for; 0: the whole map"
option extra_params false "true|false|True|False" "gather with depthwise convolutions (GE-theta)"
option mlp false "true|false|True|False" "1x1 convolutions in the excite branch (with extra_params GE-theta-plus)"
option seed 49 natural "what random numbers the run draws"
